//! Containers of Docker Compose whose place a stack takes.

use super::*;
use crate::instance::CgroupDriver;
use crate::observed::{EngineSeen, EngineState, ForeignContainer};

/// A container that Docker Compose runs for a service that the file has too.
fn with_foreign(host: Observed) -> Observed {
    let foreign = ForeignContainer {
        id: "c0ffee".into(),
        name: "shop_web_1".into(),
        service: Some(name("web")),
        running: true,
        ports: BTreeSet::new(),
    };
    let engine = EngineSeen {
        socket: "/run/docker.sock".into(),
        version: "Docker 20.10.24".into(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        remaps_users: false,
        volumes_folder: "/var/lib/docker/volumes".into(),
        images: BTreeMap::new(),
        volumes: BTreeSet::new(),
        foreign: vec![foreign],
    };
    Observed { engine: EngineState::There(Box::new(engine)), ..host }
}

/// With a policy, nothing that arrives at a published port comes to a container outside of it.
#[test]
fn a_container_that_is_taken_over_serves_until_everything_else_is_done() {
    let mut web = service("web");
    web.publish = vec![publish(None, 80, 8080)];
    let stack = stack([web]);
    let host = with_foreign(empty_host());
    let mut plan = plan(&stack, &host, wishes()).unwrap();
    assert_eq!(lint(&plan, &host), []);
    insta::assert_snapshot!(plan, @r"
    shop: 9 steps
      start the agent (it isn't there)
      load the guard (it isn't there)
      set the firewall: let in 22/tcp (ssh), 80/tcp (it isn't there)
      guard web.1 at 127.77.1.1 (it isn't there)
      stop container shop_web_1 (Docker Compose runs it, unguarded; this stack takes its place)
      set the policy of 1 service (enforced) (it isn't there)
      start web.1 (it isn't there)
      wait until web.1 runs, at most 10 s (it was just started)
      remove container shop_web_1, keep its volumes (Docker Compose runs it, unguarded; this stack takes its place)
    ");
    // Without what takes its place it goes on.
    plan.start_nothing();
    insta::assert_snapshot!(plan, @r"
    shop: 4 steps
      start the agent (it isn't there)
      load the guard (it isn't there)
      set the firewall: let in 22/tcp (ssh), 80/tcp (it isn't there)
      guard web.1 at 127.77.1.1 (it isn't there)
    ");
}
