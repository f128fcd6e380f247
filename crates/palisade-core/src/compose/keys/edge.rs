//! `x-palisade.edge`: what the TLS edge serves.

use super::*;

/// What people write in `edge`.
const EDGE_MISTAKEN: Mistaken = &[
    ("cert", "certificates are said by domain: `certificates: {barter.example: {chain: ./x.pem, key: ./x.key}}`"),
    ("email", "write it into `acme`: `acme: {email: admin@barter.example}`"),
    ("http2", "leave it out: HTTP/2 is always spoken, with whoever can"),
    ("listen", "write `ports: {http: 80, https: 443}`"),
    ("websocket", "leave it out: WebSockets need nothing said"),
];

/// `x-palisade.edge`. A list stands for its `routes`.
pub static EDGE: Section = section(
    "x-palisade.edge",
    "`edge`",
    &[
        yes("routes", Shape::Items(Short::None, &EDGE_ROUTE), "which service answers for which domain and path"),
        yes(
            "redirect",
            BOOL,
            "plain HTTP is answered with a redirect to HTTPS (308); `false`: it is served like HTTPS",
        ),
        yes("ports", Shape::Section(&EDGE_PORTS), "where the host listens"),
        yes(
            "certificates",
            Shape::NamedShort(Short::Certificate, &EDGE_CERTIFICATE),
            "by domain (`default`: all others; alone: all of them): `acme`, `local`, or files; `acme` unless given",
        ),
        yes(
            "default_domain",
            TEXT,
            "who answers a client that names no domain, or an unknown one; nobody unless given",
        ),
        yes("acme", Shape::Section(&EDGE_ACME), "how certificates are ordered"),
        yes("tls", Shape::Section(&EDGE_TLS), "what is spoken with clients"),
        yes(
            "trusted_proxies",
            SET,
            "networks of proxies in front of the edge, whose word about the client is believed",
        ),
        yes("proxy_protocol", BOOL, "these proxies begin each connection with the PROXY protocol"),
        yes("http3", BOOL, "HTTP/3 is served as well, at the UDP port of the HTTPS port's number"),
        yes(
            "access_log",
            Shape::Short(Short::Switch, &EDGE_ACCESS_LOG),
            "how requests are logged; `false`: they aren't",
        ),
        yes("error_pages", PATH, "a folder with pages for errors: `502.html`, `404.html` …"),
        yes("limits", Shape::Section(&EDGE_LIMITS), "limits of all connections"),
        yes(
            "drain",
            DURATION,
            "so long connections in use may go on when the edge is replaced or stopped; `30s` unless given",
        ),
    ],
)
.not(EDGE_MISTAKEN);

/// What people write in a route.
const ROUTE_MISTAKEN: Mistaken = &[
    ("backend", "write `to`: `to: app:8081`"),
    (
        "cert",
        "certificates are said beside `routes`, by domain: `certificates: {barter.example: {chain: ./x.pem, key: ./x.key}}`",
    ),
    ("email", "write it beside `routes`, into `acme`: `acme: {email: admin@barter.example}`"),
    (
        "header",
        "the edge sets `X-Forwarded-…`, `X-Real-IP` and, with `hsts`, that field: others are the service's to send",
    ),
    ("host", "write `domain`: `domain: barter.example`"),
    ("http2", "leave it out: HTTP/2 is always spoken with clients that can; with the service it is `protocol: h2c`"),
    ("max_body", "write `body_limit`: `body_limit: 10m`"),
    ("rate", "write `rate_limit`: `rate_limit: {per_client: 10/s, burst: 20}`"),
    ("upstream", "write `to`: `to: app:8081`"),
    ("websocket", "leave it out: WebSockets need nothing said"),
    ("whitelist", "write `allow`: `allow: [192.0.2.0/24]`"),
];

/// One of `routes`.
pub static EDGE_ROUTE: Section = same_by(
    Identity::Route,
    "x-palisade.edge.routes[]",
    "a route",
    &[
        yes("domain", ONE_OR_SET, "one domain or several; `*.` stands for one label"),
        yes("path", TEXT, "what the path begins with, in whole segments; `/` unless given"),
        yes("to", TEXT, "`service:port`, or a service that has one TCP port"),
        yes("protocol", TEXT, "what the service speaks: `http` (1.1), `h2c` or `grpc` (which is HTTP/2, too)"),
        yes(
            "rate_limit",
            Shape::Short(Short::Rate, &EDGE_RATE),
            "how often one client may ask; `off`, and unless given: as often as it likes",
        ),
        yes("connections", Shape::Section(&EDGE_CONNECTIONS), "how many connections one client may have"),
        yes("allow", SET, "only these networks may ask"),
        yes("deny", SET, "these networks may not, even if allowed"),
        yes(
            "ban",
            Shape::Section(&EDGE_BAN),
            "clients that are limited again and again are banned in the host's firewall",
        ),
        yes("body_limit", TEXT, "a request's body at most: `10m` unless given; `none`: as much as it likes"),
        yes("timeout", DURATION, "so long the service may be silent before and within an answer; `60s` unless given"),
        yes("compress", Shape::Whole, "`true`, or the media types that are compressed; `false` unless given"),
        yes(
            "hsts",
            Shape::Short(Short::Switch, &EDGE_HSTS),
            "browsers use nothing but HTTPS for the domain; `true`: for a year; `false` unless given",
        ),
    ],
)
.not(ROUTE_MISTAKEN);

/// `rate_limit` of a route.
pub static EDGE_RATE: Section = section(
    "x-palisade.edge.routes[].rate_limit",
    "`rate_limit`",
    &[
        yes("per_client", TEXT, "requests of one client: `10/s`, `90/m`; a client is an address, of IPv6 a /64"),
        yes("burst", INT, "so many more may come at once; as many as come in two seconds unless given"),
    ],
);

/// `connections` of a route.
pub static EDGE_CONNECTIONS: Section = section(
    "x-palisade.edge.routes[].connections",
    "`connections`",
    &[yes("per_client", INT, "a client is an address, of IPv6 a /64")],
);

/// `ban` of a route.
pub static EDGE_BAN: Section = section(
    "x-palisade.edge.routes[].ban",
    "`ban`",
    &[yes("after", INT, "so many refused requests within a minute"), yes("for", TEXT, "how long: `10m`, `1d`")],
);

/// `hsts` of a route.
pub static EDGE_HSTS: Section = section(
    "x-palisade.edge.routes[].hsts",
    "`hsts`",
    &[
        yes("max_age", TEXT, "how long browsers remember it: `365d`; `0` makes them forget"),
        yes("subdomains", BOOL, "for all domains below, too"),
        yes("preload", BOOL, "browsers' makers may put the domain into their list"),
    ],
);

/// `ports` of the edge.
pub static EDGE_PORTS: Section = section(
    "x-palisade.edge.ports",
    "`ports` of `edge`",
    &[yes("http", INT, "80 unless given"), yes("https", INT, "443 unless given")],
);

/// A certificate.
pub static EDGE_CERTIFICATE: Section = section(
    "x-palisade.edge.certificates.*",
    "a certificate",
    &[
        yes("chain", PATH, "a PEM file with the certificate and those between it and the root"),
        yes("key", PATH, "a PEM file with its private key"),
    ],
);

/// `acme` of the edge.
pub static EDGE_ACME: Section = section(
    "x-palisade.edge.acme",
    "`acme`",
    &[
        yes("email", TEXT, "where the authority writes to"),
        yes(
            "directory",
            Shape::OneOrItems(Short::Directory, &EDGE_DIRECTORY),
            "`letsencrypt` (unless given), `letsencrypt-staging`, `zerossl` or an address, or several, which are tried in order",
        ),
        yes(
            "root",
            PATH,
            "a PEM file with the root of the authority's own certificate, if this host doesn't know it; of each that has none of its own",
        ),
        yes("challenge", TEXT, "how the domain is shown to be yours: `http-01` unless given, or `tls-alpn-01`"),
        yes(
            "eab",
            Shape::Section(&EDGE_EAB),
            "an account that the authority knows from elsewhere; of each that has none of its own and takes one",
        ),
    ],
);

/// One of several directories.
pub static EDGE_DIRECTORY: Section = section(
    "x-palisade.edge.acme.directory[]",
    "a directory",
    &[
        yes("url", TEXT, "`letsencrypt`, `letsencrypt-staging`, `zerossl` or an address"),
        yes("root", PATH, "as `root` of `acme`, for this one"),
        yes("eab", Shape::Section(&EDGE_EAB), "as `eab` of `acme`, for this one"),
    ],
);

/// `eab`.
pub static EDGE_EAB: Section = section(
    "x-palisade.edge.acme.eab",
    "`eab`",
    &[yes("key_id", TEXT, "the account's identifier"), yes("key_file", PATH, "a file with its MAC key, in base64url")],
);

/// `tls` of the edge.
pub static EDGE_TLS: Section = section(
    "x-palisade.edge.tls",
    "`tls`",
    &[yes("minimum", TEXT, "the lowest version: `\"1.2\"` unless given, or `\"1.3\"`")],
);

/// `access_log` of the edge.
pub static EDGE_ACCESS_LOG: Section = section(
    "x-palisade.edge.access_log",
    "`access_log`",
    &[
        yes("format", TEXT, "`json` unless given, or `combined`"),
        yes("query", BOOL, "with what stands behind `?`, which may hold secrets"),
        yes("max_size", BYTES, "a file of this size is put aside; `50m` unless given"),
        yes("files", INT, "so many files are kept, with the current one; 5 unless given"),
    ],
);

/// `limits` of the edge.
pub static EDGE_LIMITS: Section = section(
    "x-palisade.edge.limits",
    "`limits` of `edge`",
    &[
        yes("connections", INT, "connections at once; 20000 unless given"),
        yes("header_size", BYTES, "a request's head at most; `32k` unless given"),
        yes("header_fields", INT, "fields of a request's head at most; 100 unless given"),
        yes("header_timeout", DURATION, "so long a request's head may take; `10s` unless given"),
        yes("idle_timeout", DURATION, "between two requests; `75s` unless given"),
        yes("body_timeout", DURATION, "between two parts of a body; `60s` unless given"),
        yes("body_rate", BYTES, "bytes a second that a body must have; 256 unless given, 0: any"),
    ],
);
