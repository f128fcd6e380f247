// What gRPC needs of a proxy, without gRPC itself: HTTP/2 both ways, trailers, and messages that pass as they come.
//
// `node grpc.js server`: an upstream; prints its port. `node grpc.js client PORT HOST ROOT`: asks through a proxy and prints what came back.
const http2 = require('http2');
const fs = require('fs');

function server() {
  const upstream = http2.createServer();
  upstream.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    if (headers[':path'] === '/shop.Shop/Refuse') {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'grpc-status': '7' }, { endStream: true });
      return;
    }
    stream.respond({
      ':status': 200, 'content-type': 'application/grpc',
      'x-got': JSON.stringify({ ...headers }),
    }, { waitForTrailers: true });
    let bytes = 0;
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0', 'x-bytes': String(bytes) }));
    // Each message is sent back as it comes, or all of them at the end: HAProxy 2.6 stands still when much goes both ways of one stream at once.
    const kept = [];
    const unary = headers[':path'] === '/shop.Shop/Unary';
    stream.on('data', (message) => { bytes += message.length; if (unary) kept.push(message); else stream.write(message); });
    stream.on('end', () => stream.end(Buffer.concat(kept)));
  });
  upstream.listen(0, '127.0.0.1', () => console.log(upstream.address().port));
}

function ask(session, path, talk) {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers', 'x-forwarded-for': '192.0.2.66',
    });
    const seen = { status: 0, headers: {}, trailers: {}, bytes: 0 };
    stream.on('response', (headers) => { seen.status = headers[':status']; seen.headers = { ...headers }; });
    stream.on('trailers', (trailers) => { seen.trailers = { ...trailers }; });
    stream.on('data', (data) => { seen.bytes += data.length; });
    stream.on('error', reject);
    stream.on('close', () => resolve(seen));
    talk(stream, seen);
  });
}

async function client(port, host, root) {
  const session = http2.connect(`https://${host}:${port}`, {
    ca: fs.readFileSync(root), servername: host,
    createConnection: () => require('tls').connect({
      host: '127.0.0.1', port, servername: host, ca: fs.readFileSync(root), ALPNProtocols: ['h2'],
    }),
  });
  const unary = await ask(session, '/shop.Shop/Unary', (stream) => stream.end('hello'));
  // The second message is sent only when the first has come back: whoever collects messages stands still.
  const stream = await ask(session, '/shop.Shop/Chat', (stream, seen) => {
    stream.write('one');
    stream.once('data', () => { stream.write('two'); stream.once('data', () => stream.end()); });
  });
  const large = await ask(session, '/shop.Shop/Unary', (stream) => stream.end(Buffer.alloc(3 << 20)));
  const refused = await ask(session, '/shop.Shop/Refuse', (stream) => stream.end('hello'));
  session.close();
  console.log(JSON.stringify({ unary, stream, large, refused }));
}

const [what, ...rest] = process.argv.slice(2);
if (what === 'server') server();
else client(...rest).catch((error) => { console.error(error); process.exit(1); });
setTimeout(() => process.exit(2), 120000).unref();
