//! What happens at the edge while nobody supervises it becomes events all the same, once.

use std::fs::{self, File};
use std::io::Write;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::edge::AUTHORITIES_VOLUME;

use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::patiently;

/// Waits until the agent has noted that it told of so many refused requests, and of all that was told of certificates.
fn passed_on(shop: &Shop, refused: usize) {
    let layout = &shop.0.layout;
    let of_certificates = layout.volume(AUTHORITIES_VOLUME).join("events.jsonl");
    patiently("a note of what was told", || {
        let noted = fs::read(layout.edge().join("passed-on.json")).ok()?;
        let noted: serde_json::Value = serde_json::from_slice(&noted).unwrap();
        let edges = noted["instances"].as_object()?.values();
        let limited: u64 = edges
            .filter_map(|seen| seen["limited"].as_object())
            .flat_map(|routes| routes.values())
            .filter_map(|n| n.as_u64())
            .sum();
        let there = fs::metadata(&of_certificates).map_or(0, |metadata| metadata.len());
        (limited == refused as u64 && noted["certificates"]["offset"] == there).then_some(())
    });
}

#[test]
fn what_happens_while_the_agent_is_away_is_told_once() {
    need_root!("edge::events::what_happens_while_the_agent_is_away_is_told_once");
    let shop =
        Shop::new(&APP.replace("to: app:8081\n", "to: app:8081\n        rate_limit: {per_client: 6/m, burst: 1}\n"));
    let events = || shop.0.palisade(&["events"]).expect(0).out;
    let ask = |times: usize| {
        let addresses = vec!["https://shop.example/"; times];
        let mut arguments = vec!["-w", "\n%{http_code}\n"];
        addresses.iter().for_each(|address| arguments.extend(["-o", "/dev/null", address]));
        let (_, text) = shop.curl(&arguments);
        text.lines().filter(|line| *line == "429").count()
    };
    let told = |events: &str| -> usize {
        let limited = events.lines().filter(|line| line.contains(" limited "));
        let refused = |line: &str| line.split("refused=").nth(1)?.split_whitespace().next()?.parse::<usize>().ok();
        limited.filter_map(refused).sum()
    };
    let mut refused = ask(20);
    assert!(refused >= 10, "{refused}");
    patiently("what was refused", || (told(&events()) >= refused).then_some(()));
    passed_on(&shop, refused);
    let agent = shop.0.agent().unwrap();
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || shop.0.agent().is_none().then_some(()));

    refused += ask(20);
    // As whoever obtains certificates tells it.
    let path = shop.0.layout.volume(AUTHORITIES_VOLUME).join("events.jsonl");
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    writeln!(file, "{{\"kind\": \"certificate_expiring\", \"details\": {{\"domain\": \"shop.example\"}}}}").unwrap();
    shop.0.palisade(&["up"]).expect(0);
    patiently("what was refused meanwhile", || (told(&events()) >= refused).then_some(()));
    patiently("what was told of certificates", || events().contains(" certificate_expiring ").then_some(()));

    // And once more with nothing new.
    passed_on(&shop, refused);
    kill(Pid::from_raw(shop.0.agent().unwrap()), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || shop.0.agent().is_none().then_some(()));
    shop.0.palisade(&["up"]).expect(0);
    let kept = shop.0.layout.edge().join("passed-on.json");
    let before = fs::read(&kept).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(7));
    let all = events();
    assert_eq!(told(&all), refused, "{all}");
    for once in [" certificate_expiring ", " certificate_served "] {
        assert_eq!(all.matches(once).count(), 1, "{all}");
    }
    assert_eq!(fs::read(&kept).unwrap(), before);
    shop.0.down();
}
