//! How a service's instances are replaced by newer ones.
//!
//! Where two versions of an instance can run side by side, the new one starts first and nobody notices; otherwise the old
//! one stops first, and for a service with one instance that is an outage.

use crate::edge;
use crate::image;
use crate::observed::ImageSeen;
use crate::place::Placed;
use crate::stack::{MountSource, Proto, Publish, Service, UpdateOrder, UpdatePolicy};

/// So long a new instance is watched before the old one goes, unless `update_config.monitor` says otherwise. Docker
/// Swarm's default.
const MONITOR_MS: u64 = 5_000;

/// Which of two versions of an instance comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The new one starts, and the old one stops when the new one serves.
    StartFirst,
    /// The old one stops before the new one starts.
    StopFirst {
        /// Why, as the end of a sentence that begins with "because".
        because: String,
    },
}

impl Service {
    /// Which of two versions of an instance comes first. `image`: what the service's image says, if it has one.
    pub fn update_order(&self, image: Option<&ImageSeen>) -> Order {
        let stop_first = |because: String| Order::StopFirst { because };
        if let Some(name) = self.run.container_run().and_then(|container| container.name.as_ref()) {
            return stop_first(format!("two containers can't both be called `{name}`"));
        }
        // The edge waits for the port for HTTP/3 and serves the other versions meanwhile.
        let needs_udp = !edge::is_own(&self.name);
        let udp = |publish: &&Placed<Publish>| publish.value.container.proto == Proto::Udp;
        if let Some(publish) = self.publish.iter().filter(|_| needs_udp).find(udp) {
            return stop_first(format!("only one process can have port {}/udp of the host", publish.value.host_port));
        }
        match self.update.and_then(|update| update.order) {
            Some(UpdateOrder::StartFirst) => return Order::StartFirst,
            Some(UpdateOrder::StopFirst) => return stop_first("`update_config.order` is `stop-first`".to_owned()),
            None => {}
        }
        let shared =
            self.mounts.iter().filter(|mount| !mount.value.read_only).find_map(|mount| match &mount.value.source {
                MountSource::Volume(name) => Some(format!("its volume `{name}`")),
                MountSource::Bind(path) => Some(format!("its folder {}", path.display())),
                MountSource::Anonymous { .. } => Some(format!("its volume at {}", mount.value.target.display())),
                MountSource::Tmpfs { .. } => None,
            });
        let of_image = image.and_then(|image| image::uncovered_volumes(self, image).next());
        match shared.or_else(|| Some(format!("its image's volume at {}", of_image?.display()))) {
            Some(shared) => stop_first(format!("{shared} can't have two writers")),
            None => Order::StartFirst,
        }
    }

    /// How many instances are replaced at once; all of them when it is more than there are.
    pub(crate) fn update_parallelism(&self) -> usize {
        let UpdatePolicy { parallelism, .. } = self.update.unwrap_or_default();
        usize::try_from(parallelism).ok().filter(|number| *number > 0).unwrap_or(usize::MAX)
    }

    /// So long new instances must do well before the update goes on.
    pub(crate) fn update_monitor_ms(&self) -> u64 {
        self.update.and_then(|update| update.monitor_ms).unwrap_or(MONITOR_MS)
    }

    /// Time between one group of instances and the next.
    pub(crate) fn update_delay_ms(&self) -> u64 {
        self.update.map_or(0, |update| update.delay_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{Mount, PortProto};
    use crate::testing::{at, service};

    fn because(service: &Service) -> Option<String> {
        match service.update_order(None) {
            Order::StartFirst => None,
            Order::StopFirst { because } => Some(because),
        }
    }

    #[test]
    fn what_two_versions_would_both_write_to_stops_first_unless_the_file_says_otherwise() {
        let mut db = service("db");
        let mount = |source, read_only| at(Mount { source, target: "/data".into(), read_only, nocopy: false });
        db.mounts = vec![
            mount(MountSource::Volume("conf".into()), true),
            mount(MountSource::Tmpfs { size_bytes: None, mode: None }, false),
        ];
        assert_eq!(because(&db), None);
        db.mounts.push(mount(MountSource::Volume("data".into()), false));
        assert_eq!(because(&db).unwrap(), "its volume `data` can't have two writers");
        db.update = Some(UpdatePolicy { order: Some(UpdateOrder::StartFirst), ..UpdatePolicy::default() });
        assert_eq!(because(&db), None);
        let port = PortProto { port: 53, proto: Proto::Udp };
        db.publish = vec![at(Publish { host_ip: None, host_port: 53, container: port })];
        assert!(because(&db).unwrap().contains("53/udp"), "no wish changes what the kernel can do");
        db.name = service(edge::SERVICE_NAME).name;
        assert_eq!(because(&db), None, "an edge waits for the port");
        let mut web = service("web");
        let image = ImageSeen { volumes: vec!["/data".into()], ..ImageSeen::default() };
        assert!(matches!(web.update_order(Some(&image)), Order::StopFirst { because } if because.contains("/data")));
        web.update = Some(UpdatePolicy { order: Some(UpdateOrder::StopFirst), ..UpdatePolicy::default() });
        assert_eq!(because(&web).unwrap(), "`update_config.order` is `stop-first`");
    }
}
