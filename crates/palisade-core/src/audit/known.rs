//! What usually listens where: by the name of the program first, by the port otherwise.
//!
//! It decides only how a reachable port is spoken of, never whether it is reachable.

use crate::stack::Proto;

/// What a program or a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Made for trusted peers only.
    Internal,
    /// The container engine's API.
    EngineApi,
    /// A name server.
    Dns,
    /// Made for everybody.
    Public,
    /// How the host itself gets its address and time.
    Host,
}

/// A known program or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// `PostgreSQL`.
    pub(super) what: &'static str,
    /// What it is for.
    pub(super) purpose: Purpose,
    /// How to keep it to loopback, as an imperative without a full stop.
    pub(super) private: &'static str,
}

struct Entry {
    /// Starts of program names and of the last part of image names.
    programs: &'static [&'static str],
    /// Its usual ports.
    ports: &'static [u16],
    known: Known,
}

const fn internal(
    what: &'static str,
    programs: &'static [&'static str],
    ports: &'static [u16],
    private: &'static str,
) -> Entry {
    Entry { programs, ports, known: Known { what, purpose: Purpose::Internal, private } }
}

const fn other(
    what: &'static str,
    purpose: Purpose,
    programs: &'static [&'static str],
    ports: &'static [u16],
) -> Entry {
    Entry { programs, ports, known: Known { what, purpose, private: "" } }
}

const BIND: &str = "bind it to 127.0.0.1 in its own configuration";

static ENTRIES: &[Entry] = &[
    internal(
        "PostgreSQL",
        &["postgres", "postmaster", "pgbouncer", "postgis", "timescaledb", "pgvector"],
        &[5432, 6432],
        "set `listen_addresses = 'localhost'` in postgresql.conf and restart it",
    ),
    internal(
        "MySQL or MariaDB",
        &["mysqld", "mariadbd", "mysql", "mariadb"],
        &[3306, 33060],
        "set `bind-address = 127.0.0.1` in its configuration",
    ),
    internal("Ollama", &["ollama"], &[11434], "set OLLAMA_HOST=127.0.0.1:11434 in its unit"),
    internal("a model server", &["vllm", "llama-server", "localai", "text-generation", "tritonserver"], &[], BIND),
    internal(
        "Redis",
        &["redis-server", "valkey-server", "redis", "valkey", "keydb"],
        &[6379, 16379, 26379],
        "set `bind 127.0.0.1 -::1` in redis.conf",
    ),
    internal("Memcached", &["memcached"], &[11211], "start it with `-l 127.0.0.1`, and with `-U 0` against UDP"),
    internal("MongoDB", &["mongod", "mongos", "mongo"], &[27017, 27018], "set `net.bindIp: 127.0.0.1` in mongod.conf"),
    internal(
        "Elasticsearch or OpenSearch",
        &["elasticsearch", "opensearch"],
        &[9200, 9300],
        "set `network.host: 127.0.0.1`",
    ),
    internal("ClickHouse", &["clickhouse"], &[8123, 9009], "set `listen_host` to 127.0.0.1"),
    internal("CouchDB", &["couchdb"], &[5984], "set `bind_address = 127.0.0.1`"),
    internal("InfluxDB", &["influxd", "influxdb"], &[8086], BIND),
    internal("Microsoft SQL Server", &["sqlservr", "mssql"], &[1433], BIND),
    internal("a vector database", &["qdrant", "milvus", "weaviate", "chroma"], &[6333, 6334, 19530], BIND),
    internal(
        "RabbitMQ",
        &["rabbitmq", "beam.smp"],
        &[5672, 15672, 25672, 4369],
        "set `listeners.tcp.local = 127.0.0.1:5672`",
    ),
    internal("Kafka", &["kafka"], &[9092], "set `listeners=PLAINTEXT://127.0.0.1:9092`"),
    internal("NATS", &["nats-server", "nats"], &[4222, 8222], BIND),
    internal("an MQTT broker without TLS", &["mosquitto"], &[1883], BIND),
    internal("ZooKeeper", &["zookeeper"], &[2181], BIND),
    internal("etcd", &["etcd"], &[2379, 2380], "set `--listen-client-urls http://127.0.0.1:2379`"),
    internal("Consul", &["consul"], &[8500], BIND),
    internal("MinIO", &["minio"], &[9000, 9001], BIND),
    internal("Prometheus", &["prometheus"], &[9090], "start it with `--web.listen-address=127.0.0.1:9090`"),
    internal(
        "a metrics exporter",
        &["node_exporter", "postgres_exporter", "cadvisor", "process-exporter", "alertmanager"],
        &[9093, 9100, 9187],
        "start it with `--web.listen-address=127.0.0.1:…`",
    ),
    internal("Grafana", &["grafana"], &[3000], "set `http_addr = 127.0.0.1`, and serve it through a proxy with TLS"),
    internal(
        "an admin page",
        &["phpmyadmin", "pgadmin", "adminer", "portainer", "cockpit-tls", "cockpit-ws", "webmin", "mongo-express"],
        &[9443, 10000],
        BIND,
    ),
    internal(
        "NFS or RPC",
        &["rpcbind", "rpc.mountd", "rpc.statd", "nfsd"],
        &[111, 2049],
        "stop it if nobody mounts from here: `systemctl disable --now rpcbind.socket rpcbind`",
    ),
    internal("SMB", &["smbd", "nmbd"], &[139, 445], "set `interfaces = lo` and `bind interfaces only = yes`"),
    internal("a printer service", &["cupsd"], &[631], "set `Listen localhost:631`"),
    internal("SNMP", &["snmpd"], &[161], "set `agentAddress udp:127.0.0.1:161`"),
    internal("a debugger", &["gdbserver", "dlv"], &[9229, 5005, 2345], BIND),
    other("the container engine's API", Purpose::EngineApi, &["dockerd", "podman"], &[2375, 2376]),
    other(
        "a name server",
        Purpose::Dns,
        &["dnsmasq", "named", "unbound", "coredns", "systemd-resolve", "pdns", "knotd", "pihole-FTL"],
        &[53],
    ),
    other("SSH", Purpose::Public, &["sshd", "dropbear"], &[22]),
    other(
        "a web server",
        Purpose::Public,
        &["nginx", "caddy", "haproxy", "apache2", "httpd", "traefik", "envoy", "lighttpd"],
        &[80, 443],
    ),
    other("mail", Purpose::Public, &["master", "postfix", "exim4", "dovecot", "smtpd"], &[25, 465, 587, 993, 995]),
    other(
        "a VPN",
        Purpose::Public,
        &["tailscaled", "openvpn", "wireguard", "charon"],
        &[51820, 1194, 500, 4500, 41641],
    ),
    other("a DHCP client", Purpose::Host, &["dhclient", "dhcpcd", "systemd-network", "NetworkManager"], &[68, 546]),
    other("time", Purpose::Host, &["chronyd", "ntpd", "systemd-timesyn"], &[123, 323]),
    other("multicast DNS", Purpose::Dns, &["avahi-daemon"], &[5353, 5355]),
];

/// What a program is, or what is usual at the port. `image`: of its container, if it runs in one.
pub(super) fn known(program: &str, image: Option<&str>, proto: Proto, port: u16) -> Option<Known> {
    let image = image.map(last_part);
    let named = |name: &str| {
        let starts = |entry: &&Entry| entry.programs.iter().any(|start| name.starts_with(start));
        ENTRIES.iter().find(starts).map(|entry| entry.known)
    };
    // A proxy says nothing about what is behind it; an interpreter nothing about its program.
    let by_name = image.and_then(named).or_else(|| named(program));
    by_name.or_else(|| {
        let usual = |entry: &&Entry| entry.ports.contains(&port) && (proto == Proto::Tcp || is_udp(port));
        ENTRIES.iter().find(usual).map(|entry| entry.known)
    })
}

/// Ports where something else listens at least as often as what is in the table.
const COMMON: [u16; 9] = [3000, 5005, 8123, 8500, 9000, 9001, 9090, 9443, 10000];

/// What an internal service behind a TCP port is: by its image, or by a port that hardly anything else uses.
pub(crate) fn usual_internal(image: Option<&str>, port: u16) -> Option<&'static str> {
    if COMMON.contains(&port) && image.is_none_or(|image| known("", Some(image), Proto::Tcp, 0).is_none()) {
        return None;
    }
    let known = known("", image, Proto::Tcp, port)?;
    let is_internal = matches!(known.purpose, Purpose::Internal | Purpose::EngineApi);
    // Pages with a login of their own are made to be served.
    let is_page = matches!(known.what, "Grafana" | "an admin page" | "MinIO");
    (is_internal && !is_page).then_some(known.what)
}

/// Ports whose usual service is asked by UDP, too.
fn is_udp(port: u16) -> bool {
    matches!(
        port,
        53 | 68 | 111 | 123 | 161 | 323 | 443 | 500 | 546 | 1194 | 2049 | 4500 | 5353 | 5355 | 11211 | 41641 | 51820
    )
}

/// `postgres` of `registry.example:5000/library/postgres:16`.
fn last_part(image: &str) -> &str {
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split([':', '@']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_wherever_they_listen_and_ports_whoever_does() {
        let what = |program: &str, image, port| known(program, image, Proto::Tcp, port).map(|known| known.what);
        assert_eq!(what("postgres", None, 15432), Some("PostgreSQL"));
        assert_eq!(what("docker-proxy", Some("registry.example:5000/library/postgres:16"), 9999), Some("PostgreSQL"));
        assert_eq!(what("python3", None, 11434), Some("Ollama"));
        assert_eq!(what("nginx", None, 5432), Some("a web server"));
        assert_eq!(what("python3", None, 49913), None);
        assert_eq!(known("x", None, Proto::Udp, 5432), None);
        assert_eq!(known("x", None, Proto::Udp, 53).unwrap().purpose, Purpose::Dns);
    }

    #[test]
    fn no_port_is_claimed_twice() {
        let mut all: Vec<u16> = ENTRIES.iter().flat_map(|entry| entry.ports).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
