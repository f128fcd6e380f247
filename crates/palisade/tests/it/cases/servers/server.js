require('http').createServer((request, response) => {
  response.end(`node sees ${request.socket.remoteAddress}\n`);
}).listen(3000);
