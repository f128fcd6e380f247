//! Replicas behind the edge are restarted while somebody asks all the time.

use super::load::Load;
use super::shop::{APP, Shop};
use crate::need_root;

#[test]
fn nobody_notices_a_restart_of_replicas() {
    need_root!("edge::turns::nobody_notices_a_restart_of_replicas");
    let shop = Shop::new(&APP.replace("replicas: 1", "replicas: 2"));
    let pids = || ["app.1", "app.2"].map(|instance| shop.0.pid(instance).unwrap());
    let load = Load::start(&shop);
    for _ in 0..3 {
        let before = pids();
        let ran = shop.0.palisade(&["restart", "app"]).expect(0);
        assert!(ran.err.contains("send new connections for app to app.2"), "{}", ran.err);
        assert!(pids().iter().all(|pid| !before.contains(pid)));
        load.wait_for("version 1", 200);
    }
    load.end();
    // Both take requests again.
    let plan = shop.0.palisade(&["plan"]).expect(0).out;
    assert!(plan.contains("nothing to change"), "{plan}");
    shop.0.down();
}
