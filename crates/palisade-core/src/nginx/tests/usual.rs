//! Configurations as people have them, from how-tos and programs that write them. What is said about them is all that is to be said.

use super::*;

/// Ids of what is found, in a whole configuration whose `http` includes these files.
fn found(files: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    let source = Files { texts: files.to_vec(), there: vec!["/c.pem", "/k.pem"] };
    let text = "user www-data;\nevents { worker_connections 768; }\nhttp {\n  server_tokens off;\n  include sites-enabled/*;\n}\n";
    let report = check("nginx.conf", text, &source, Known::default());
    report.diagnostics.iter().map(|found| found.id).collect()
}

#[test]
fn certbots_own_layout_is_fine() {
    // The second server is for whoever comes by HTTP: what looks like a page that isn't found is a redirect.
    let site = "server {
        server_name a.example www.a.example; root /var/www/a; location / { try_files $uri $uri/ =404; }
        listen [::]:443 ssl ipv6only=on; listen 443 ssl; # managed by Certbot
        ssl_certificate /c.pem; ssl_certificate_key /k.pem; include letsencrypt/options-ssl-nginx.conf;
      }
      server {
        if ($host = www.a.example) { return 301 https://$host$request_uri; } # managed by Certbot
        if ($host = a.example) { return 301 https://$host$request_uri; } # managed by Certbot
        listen 80; listen [::]:80; server_name a.example www.a.example; return 404; # managed by Certbot
      }";
    let options = "ssl_session_cache shared:le_nginx_SSL:10m; ssl_session_timeout 1440m; ssl_session_tickets off;
      ssl_protocols TLSv1.2 TLSv1.3; ssl_prefer_server_ciphers off; ssl_ciphers \"ECDHE-ECDSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384\";";
    let default =
        "server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; server_name _; }";
    let files = [
        ("sites-enabled/a", site),
        ("sites-enabled/default", default),
        ("letsencrypt/options-ssl-nginx.conf", options),
    ];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn wordpress_that_runs_uploads_is_found() {
    let site = "limit_req_zone $binary_remote_addr zone=login:10m rate=1r/s;
      upstream php { server unix:/run/php/php8.2-fpm.sock; }
      server { listen 80; listen [::]:80; server_name blog.example; return 301 https://blog.example$request_uri; }
      server {
        listen 443 ssl http2; listen [::]:443 ssl http2; server_name blog.example; root /var/www/blog;
        ssl_certificate /c.pem; ssl_certificate_key /k.pem; client_max_body_size 64M;
        add_header Strict-Transport-Security max-age=31536000 always;
        set $skip_cache 0; if ($request_method = POST) { set $skip_cache 1; }
        if ($http_cookie ~* \"comment_author|wordpress_[a-f0-9]+|wp-postpass\") { set $skip_cache 1; }
        location = /robots.txt { allow all; log_not_found off; }
        location / { try_files $uri $uri/ /index.php?$args; }
        location = /wp-login.php { limit_req zone=login burst=3 nodelay; limit_req_status 429; fastcgi_pass php; }
        location ~ \\.php$ { try_files $uri =404; fastcgi_cache_bypass $skip_cache; fastcgi_pass php; }
        location ~* \\.(js|css|png)$ { expires max; }
        location ~ /\\.(?!well-known) { deny all; }
        location ~ /(?:uploads|files)/.*\\.php$ { deny all; }
      }";
    assert_eq!(found(&[("sites-enabled/blog", site)]), ["location-never-asked"]);
}

#[test]
fn what_the_proxy_manager_writes_is_fine() {
    let site = "map $scheme $hsts_header { https \"max-age=63072000; preload\"; }
      server {
        set $forward_scheme http; set $server \"192.168.1.10\"; set $port 8123;
        listen 80; listen [::]:80; listen 443 ssl http2; listen [::]:443 ssl http2; server_name ha.example;
        ssl_certificate /c.pem; ssl_certificate_key /k.pem; include force-ssl.conf;
        add_header Strict-Transport-Security $hsts_header always;
        location / {
          add_header Strict-Transport-Security $hsts_header always;
          proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection; proxy_http_version 1.1;
          include proxy.conf;
        }
      }";
    let redirect = "set $test \"\"; if ($scheme = \"http\") { set $test \"H\"; }
      if ($request_uri = /.well-known/acme-challenge/test-challenge) { set $test \"${test}T\"; }
      if ($test = H) { return 301 https://$host$request_uri; }";
    let proxy = "add_header X-Served-By $host; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Real-IP $remote_addr; proxy_pass $forward_scheme://$server:$port$request_uri;";
    let files = [("sites-enabled/1.conf", site), ("force-ssl.conf", redirect), ("proxy.conf", proxy)];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn behind_a_cdn_the_header_isnt_the_clients_address() {
    let site = "set_real_ip_from 173.245.48.0/20; set_real_ip_from 2400:cb00::/32; real_ip_header CF-Connecting-IP;
      limit_req_zone $http_cf_connecting_ip zone=a:10m rate=10r/s;
      limit_req_zone $binary_remote_addr zone=b:10m rate=10r/s;
      server { listen 443 ssl; listen [::]:443 ssl; server_name shop.example; ssl_certificate /c.pem; ssl_certificate_key /k.pem;
        limit_req_status 429;
        location / { limit_req zone=a burst=20; proxy_pass http://127.0.0.1:8000; proxy_set_header X-Forwarded-For $remote_addr; }
        location /api/ { limit_req zone=b burst=20; proxy_pass http://127.0.0.1:8000/; }
      }";
    assert_eq!(found(&[("sites-enabled/shop", site)]), ["limit-by-header"]);
}

#[test]
fn containers_that_are_handed_on_are_judged_by_what_they_are() {
    let site = "server { listen 443 ssl; listen [::]:443 ssl; server_name git.example; ssl_certificate /c.pem; ssl_certificate_key /k.pem;
        location / { proxy_pass http://localhost:3000; }
        location /cloud { resolver 127.0.0.11 valid=30s; set $app nextcloud; proxy_pass http://$app:80; }
        location /adminer { proxy_pass http://172.17.0.5:8080/; }
        location /metrics { proxy_pass http://127.0.0.1:9090; allow 10.0.0.0/8; deny all; }
        location /es/ { proxy_pass http://elasticsearch:9200/; }
        location ~ ^/call/([a-z0-9.]+)/(.*)$ { proxy_pass http://$1/$2; }
      }";
    assert_eq!(found(&[("sites-enabled/git", site)]), ["proxy-uri", "internal-port-proxied", "open-proxy"]);
}
