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

#[test]
fn nextcloud_as_its_manual_has_it_is_fine() {
    let site = r#"upstream php-handler { server unix:/run/php/php8.2-fpm.sock; }
      map $arg_v $asset_immutable { "" ""; default ", immutable"; }
      server { listen 80; listen [::]:80; server_name cloud.example; server_tokens off; return 301 https://$server_name$request_uri; }
      server {
        listen 443 ssl; listen [::]:443 ssl; http2 on; server_name cloud.example; root /var/www/nextcloud;
        ssl_certificate /c.pem; ssl_certificate_key /k.pem; client_max_body_size 512M; client_body_timeout 300s;
        fastcgi_buffers 64 4K; gzip on; gzip_vary on; gzip_types text/css; client_body_buffer_size 512k;
        add_header Referrer-Policy "no-referrer" always; add_header X-Content-Type-Options "nosniff" always;
        add_header X-Frame-Options "SAMEORIGIN" always; add_header X-Robots-Tag "noindex, nofollow" always;
        fastcgi_hide_header X-Powered-By; index index.php index.html /index.php$request_uri;
        location = / { if ( $http_user_agent ~ ^DavClnt ) { return 302 /remote.php/webdav/$is_args$args; } }
        location = /robots.txt { allow all; log_not_found off; access_log off; }
        location ^~ /.well-known {
          location = /.well-known/carddav { return 301 /remote.php/dav/; }
          location /.well-known/acme-challenge { try_files $uri $uri/ =404; }
          return 301 /index.php$request_uri;
        }
        location ~ ^/(?:build|tests|config|lib|3rdparty|templates|data)(?:$|/) { return 404; }
        location ~ ^/(?:\.|autotest|occ|issue|indie|db_|console) { return 404; }
        location ~ \.php(?:$|/) {
          rewrite ^/(?!index|remote|public|cron|core\/ajax\/update|status|ocs\/v[12]) /index.php$request_uri;
          fastcgi_split_path_info ^(.+?\.php)(/.*)$; set $path_info $fastcgi_path_info; try_files $fastcgi_script_name =404;
          include fastcgi_params; fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; fastcgi_param HTTPS on;
          fastcgi_pass php-handler; fastcgi_intercept_errors on; fastcgi_request_buffering off;
        }
        location ~ \.(?:css|js|mjs|svg|gif|ico|jpg|png|webp|wasm|tflite|map|ogg|flac)$ {
          try_files $uri /index.php$request_uri; access_log off;
          add_header Cache-Control "public, max-age=15778463$asset_immutable"; add_header Referrer-Policy "no-referrer" always;
          add_header X-Content-Type-Options "nosniff" always; add_header X-Frame-Options "SAMEORIGIN" always;
          location ~ \.wasm$ { default_type application/wasm; }
        }
        location /remote { return 301 /remote.php$request_uri; }
        location / { try_files $uri $uri/ /index.php$request_uri; }
      }"#;
    let files = [("sites-enabled/cloud", site), ("fastcgi_params", "fastcgi_param QUERY_STRING $query_string;")];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn mastodon_as_it_comes_is_fine() {
    let site = r#"map $http_upgrade $connection_upgrade { default upgrade; '' close; }
      upstream backend { server 127.0.0.1:3000 fail_timeout=0; }
      upstream streaming { least_conn; server 127.0.0.1:4000 fail_timeout=0; }
      proxy_cache_path /var/cache/nginx levels=1:2 keys_zone=CACHE:10m inactive=7d max_size=1g;
      server { listen 80; listen [::]:80; server_name social.example; root /home/mastodon/live/public;
        location /.well-known/acme-challenge/ { allow all; } location / { return 301 https://$host$request_uri; } }
      server {
        listen 443 ssl http2; listen [::]:443 ssl http2; server_name social.example;
        ssl_protocols TLSv1.2 TLSv1.3; ssl_ciphers HIGH:!MEDIUM:!LOW:!aNULL:!NULL:!SHA; ssl_prefer_server_ciphers on;
        ssl_session_cache shared:SSL:10m; ssl_session_tickets off; ssl_certificate /c.pem; ssl_certificate_key /k.pem;
        keepalive_timeout 70; sendfile on; client_max_body_size 99m; root /home/mastodon/live/public;
        gzip on; gzip_disable "msie6"; gzip_types text/plain text/css;
        location / { try_files $uri @proxy; }
        location = /sw.js { add_header Cache-Control "public, max-age=604800, must-revalidate";
          add_header Strict-Transport-Security "max-age=63072000; includeSubDomains"; try_files $uri =404; }
        location ^~ /api/v1/streaming {
          proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
          proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header Proxy ""; proxy_pass http://streaming; proxy_buffering off;
          proxy_redirect off; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
          tcp_nodelay on;
        }
        location @proxy {
          proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_pass_header Server;
          proxy_pass http://backend; proxy_buffering on; proxy_redirect off; proxy_http_version 1.1;
          proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
          proxy_cache CACHE; proxy_cache_valid 200 7d; proxy_cache_use_stale error timeout updating; add_header X-Cached $upstream_cache_status;
        }
        error_page 404 500 501 502 503 504 /500.html;
      }"#;
    assert_eq!(found(&[("sites-enabled/mastodon", site)]), [""; 0]);
}

#[test]
fn grafana_and_gitea_as_their_manuals_have_them_are_told_about_tls_alone() {
    let grafana = r#"map $http_upgrade $connection_upgrade { default upgrade; '' close; }
      upstream grafana { server localhost:3000; }
      server {
        listen 80; listen [::]:80; server_name grafana.example; root /usr/share/nginx/html; index index.html;
        location / { proxy_set_header Host $host; proxy_pass http://grafana; }
        location /api/live/ { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
          proxy_set_header Connection $connection_upgrade; proxy_set_header Host $host; proxy_pass http://grafana; }
      }"#;
    let gitea = r#"server { listen 80; listen [::]:80; server_name git.example;
        location / { client_max_body_size 512M; proxy_pass http://localhost:3000; proxy_set_header Connection $http_connection;
          proxy_set_header Upgrade $http_upgrade; proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
          proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; } }"#;
    let default =
        "server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; server_name _; }";
    for site in [grafana, gitea] {
        assert_eq!(found(&[("sites-enabled/a", site), ("sites-enabled/default", default)]), ["http-only"]);
    }
}

#[test]
fn snippets_of_distributions_and_how_tos_are_fine_by_themselves() {
    for snippet in [
        // Debian's snippets/fastcgi-php.conf, snakeoil.conf and proxy_params.
        "fastcgi_split_path_info ^(.+?\\.php)(/.*)$; try_files $fastcgi_script_name =404; set $path_info $fastcgi_path_info; \
         fastcgi_param PATH_INFO $path_info; fastcgi_index index.php; include fastcgi.conf;",
        "ssl_certificate /c.pem; ssl_certificate_key /k.pem;",
        "proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
        // certbot's, and the one for strong ciphers that is copied most.
        "ssl_session_cache shared:le_nginx_SSL:10m; ssl_session_timeout 1440m; ssl_session_tickets off; ssl_protocols TLSv1.2 TLSv1.3;",
        "ssl_protocols TLSv1.3; ssl_prefer_server_ciphers on; ssl_dhparam /d.pem; ssl_ecdh_curve secp384r1; resolver 127.0.0.53; \
         resolver_timeout 5s; add_header X-Frame-Options DENY; add_header X-Content-Type-Options nosniff;",
        "location ^~ /.well-known/acme-challenge/ { default_type text/plain; root /var/www/letsencrypt; }",
        "proxy_cache_path /tmp/nginx levels=1:2 keys_zone=my_zone:10m inactive=60m; proxy_cache_key $scheme$request_method$host$request_uri;",
        "gzip on; gzip_vary on; gzip_proxied any; gzip_comp_level 6; gzip_types text/plain text/css;",
    ] {
        let source = Files {
            texts: vec![("fastcgi.conf", "fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;")],
            there: vec!["/c.pem", "/k.pem"],
        };
        let report = check("snippet.conf", snippet, &source, Known::default());
        let ids: Vec<_> = report.diagnostics.iter().map(|found| found.id).collect();
        assert_eq!(ids, [""; 0], "{snippet}");
    }
}
