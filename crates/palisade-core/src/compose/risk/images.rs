//! What an image's name tells: its version, and what kind of program it is.

/// Parts of `registry/path/name:tag@digest`.
pub(super) struct Image<'a> {
    /// Without tag and digest.
    path: &'a str,
    pub(super) tag: Option<&'a str>,
    pub(super) digest: bool,
}

/// Kinds of programs that risks know about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It keeps data, and is called this.
    Store(&'static str),
    /// The same, and its data is often worth nothing.
    Cache(&'static str),
    Model,
    Admin,
}

const STORES: [(&str, &str); 34] = [
    ("postgres", "PostgreSQL"),
    ("postgis", "PostgreSQL"),
    ("timescaledb", "PostgreSQL"),
    ("pgvector", "PostgreSQL"),
    ("mysql", "MySQL"),
    ("percona", "MySQL"),
    ("mariadb", "MariaDB"),
    ("mongo", "MongoDB"),
    ("mssql", "SQL Server"),
    ("cockroach", "CockroachDB"),
    ("cassandra", "Cassandra"),
    ("scylla", "ScyllaDB"),
    ("elasticsearch", "Elasticsearch"),
    ("opensearch", "OpenSearch"),
    ("clickhouse", "ClickHouse"),
    ("couchdb", "CouchDB"),
    ("couchbase", "Couchbase"),
    ("influxdb", "InfluxDB"),
    ("neo4j", "Neo4j"),
    ("rabbitmq", "RabbitMQ"),
    ("kafka", "Kafka"),
    ("etcd", "etcd"),
    ("minio", "MinIO"),
    ("arangodb", "ArangoDB"),
    ("rethinkdb", "RethinkDB"),
    ("surrealdb", "SurrealDB"),
    ("qdrant", "Qdrant"),
    ("weaviate", "Weaviate"),
    ("milvus", "Milvus"),
    ("chroma", "Chroma"),
    ("meilisearch", "Meilisearch"),
    ("typesense", "Typesense"),
    ("solr", "Solr"),
    ("questdb", "QuestDB"),
];
const CACHES: [(&str, &str); 6] = [
    ("redis", "Redis"),
    ("valkey", "Valkey"),
    ("keydb", "KeyDB"),
    ("dragonfly", "Dragonfly"),
    ("memcached", "memcached"),
    ("zookeeper", "ZooKeeper"),
];
const MODELS: [&str; 7] =
    ["ollama", "vllm", "text-generation-inference", "localai", "local-ai", "llama.cpp", "tritonserver"];
const ADMINS: [&str; 12] = [
    "adminer",
    "phpmyadmin",
    "pgadmin",
    "mongo-express",
    "redis-commander",
    "redisinsight",
    "redis-insight",
    "portainer",
    "cadvisor",
    "dozzle",
    "kafka-ui",
    "flower",
];
/// Tools around a store that are named after it.
const AROUND: [&str; 10] =
    ["exporter", "dashboards", "backup", "client", "proxy", "bouncer", "-ui", "operator", "agent", "connect"];

impl<'a> Image<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let (name, digest) = text.split_once('@').map_or((text, false), |(name, _)| (name, true));
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        match name[last..].rfind(':') {
            Some(colon) => Self { path: &name[..last + colon], tag: Some(&name[last + colon + 1..]), digest },
            None => Self { path: name, tag: None, digest },
        }
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        kind_of(self.path)
    }

    /// Its name makes it a tool that saves data.
    pub(super) fn is_backup(&self) -> bool {
        let path = self.path.to_ascii_lowercase();
        ["backup", "restic", "pgbackrest", "barman", "wal-g", "duplicity", "borg", "kopia", "litestream"]
            .iter()
            .any(|tool| path.contains(tool))
    }
}

fn kind_of(path: &str) -> Option<Kind> {
    let path = path.to_ascii_lowercase();
    let last = path.rsplit('/').next().unwrap_or_default();
    if ADMINS.iter().any(|admin| last.starts_with(admin)) {
        return Some(Kind::Admin);
    }
    if AROUND.iter().any(|word| last.contains(word)) {
        return None;
    }
    if MODELS.iter().any(|model| last.starts_with(model)) || path.contains("vllm/") {
        return Some(Kind::Model);
    }
    let makers: Vec<&str> = path.match_indices("/server").map(|(at, _)| &path[..at]).collect();
    let named = |known: &&(&str, &'static str)| {
        last.starts_with(known.0) || makers.iter().any(|maker| maker.ends_with(known.0))
    };
    if let Some((_, name)) = CACHES.iter().find(named) {
        return Some(Kind::Cache(name));
    }
    STORES.iter().find(named).map(|(_, name)| Kind::Store(name))
}

/// Whose port it usually is.
pub(super) fn kind_of_port(port: u16) -> Option<Kind> {
    Some(match port {
        5432 => Kind::Store("PostgreSQL"),
        3306 => Kind::Store("MySQL"),
        1433 => Kind::Store("SQL Server"),
        1521 => Kind::Store("Oracle"),
        27017 => Kind::Store("MongoDB"),
        9042 => Kind::Store("Cassandra"),
        9200 | 9300 => Kind::Store("Elasticsearch"),
        5984 => Kind::Store("CouchDB"),
        7687 => Kind::Store("Neo4j"),
        26257 => Kind::Store("CockroachDB"),
        5672 => Kind::Store("RabbitMQ"),
        9092 => Kind::Store("Kafka"),
        2379 => Kind::Store("etcd"),
        6379 => Kind::Cache("Redis"),
        11211 => Kind::Cache("memcached"),
        2181 => Kind::Cache("ZooKeeper"),
        11434 => Kind::Model,
        2375 | 2376 => Kind::Admin,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tags_and_digests() {
        let image = Image::parse("registry.example:5000/team/postgres:17.2@sha256:00ff");
        assert_eq!((image.path, image.tag, image.digest), ("registry.example:5000/team/postgres", Some("17.2"), true));
        let image = Image::parse("registry.example:5000/team/app");
        assert_eq!((image.path, image.tag, image.digest), ("registry.example:5000/team/app", None, false));
    }

    #[test]
    fn kinds_by_name() {
        assert_eq!(kind_of("docker.io/bitnami/postgresql"), Some(Kind::Store("PostgreSQL")));
        assert_eq!(kind_of("mcr.microsoft.com/mssql/server"), Some(Kind::Store("SQL Server")));
        assert_eq!(kind_of("redis"), Some(Kind::Cache("Redis")));
        assert_eq!(kind_of("rediscommander/redis-commander"), Some(Kind::Admin));
        assert_eq!(kind_of("quay.io/prometheuscommunity/postgres-exporter"), None);
        assert_eq!(kind_of("ollama/ollama"), Some(Kind::Model));
        assert_eq!(kind_of("mongo-express"), Some(Kind::Admin));
        assert_eq!(kind_of("nginx"), None);
    }
}
