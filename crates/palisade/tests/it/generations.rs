//! `history` and `rollback`, and `up` of a part of the stack, with real services.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::need_root;
use crate::scratch::Host;

const FILE: &str = r#"
name: shop
services:
  db:
    environment: { PASSWORD: hunter2, COLOUR: blue }
    x-palisade: { process: { command: [sleep, "1000"], user: nobody }, connect: [] }
  app:
    depends_on: [db]
    x-palisade: { process: { command: [sleep, "1000"] }, connect: [db] }
  other:
    x-palisade: { process: { command: [sleep, "1000"] } }
"#;

fn stage() -> Host {
    let host = Host::new();
    host.write(FILE);
    host
}

fn history(host: &Host) -> Vec<Value> {
    let text = host.palisade(&["history", "--format", "json"]).expect(0).out;
    assert!(!text.contains("hunter"), "{text}");
    let history: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(history["version"], 1);
    history["generations"].as_array().unwrap().clone()
}

fn colour(host: &Host) -> String {
    host.palisade(&["exec", "db", "sh", "-c", "echo $COLOUR"]).expect(0).out
}

#[test]
fn each_change_is_a_generation_and_any_of_them_comes_back() {
    need_root!("generations::each_change_is_a_generation_and_any_of_them_comes_back");
    let host = stage();
    host.up();
    host.up();
    assert_eq!(history(&host).len(), 1, "nothing changed the second time");
    let missing = host.palisade(&["rollback", "--yes"]).expect(1);
    assert!(missing.err.contains("no generation before the last"), "{}", missing.err);
    // A line that moves is no change.
    host.write(&format!("# A comment.\n{FILE}"));
    host.up();
    assert_eq!(history(&host).len(), 1);
    host.write(&FILE.replace("blue", "green").replace("hunter2", "hunter3"));
    host.up();
    let list = history(&host);
    assert_eq!(list.len(), 2);
    assert_eq!((&list[0]["current"], &list[1]["current"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!(list[1]["changes"]["changed"]["db"], serde_json::json!(["environment.COLOUR", "environment.PASSWORD"]));
    assert_eq!(list[1]["origin"]["kind"], "up");
    assert_eq!(colour(&host), "green\n");

    let (app, other) = (host.pid("app.1"), host.pid("other.1"));
    let asked = host.palisade(&["rollback"]).expect(2);
    assert!(asked.err.contains("not confirmed") && asked.err.contains("stop db.2"), "{}", asked.err);
    assert_eq!(colour(&host), "green\n");
    let back = host.palisade(&["rollback", "--yes"]).expect(0);
    assert!(back.err.contains("from generation 2 to 1: db: environment.COLOUR, environment.PASSWORD"), "{}", back.err);
    assert!(!back.err.contains("hunter"), "{}", back.err);
    assert_eq!(colour(&host), "blue\n");
    assert_eq!((host.pid("app.1"), host.pid("other.1")), (app, other));
    let list = history(&host);
    assert_eq!(list.len(), 3);
    assert_eq!(list[2]["origin"], serde_json::json!({ "kind": "rollback", "to": 1 }));
    assert_eq!(list[2]["current"], true);
    let table = host.palisade(&["history"]).expect(0).out;
    let first = table.lines().nth(1).unwrap();
    assert!(first.starts_with("*  3 ") && first.contains("rollback to 1"), "{table}");
    // The one before the current is what the file says.
    host.palisade(&["rollback", "--yes"]).expect(0);
    assert_eq!(colour(&host), "green\n");
    host.palisade(&["plan"]).expect(0);
    host.down();
}

#[test]
fn generations_are_private_few_and_checked() {
    need_root!("generations::generations_are_private_few_and_checked");
    let host = stage();
    for number in 1..=12 {
        host.write(&FILE.replace("blue", &format!("colour{number}")));
        host.palisade(&["up"]).expect(0);
    }
    let numbers: Vec<u64> = history(&host).iter().map(|seen| seen["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (3..=12).collect::<Vec<_>>());
    let folder = host.layout.generations();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = folder.join("4").join("generation.json");
    assert_eq!((mode(&folder), mode(&folder.join("4")), mode(&file)), (0o700, 0o700, 0o600));
    assert!(fs::read_to_string(&file).unwrap().contains("hunter2"), "it is the place where secrets are kept");

    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replace("colour4", "colour9")).unwrap();
    let damaged = host.palisade(&["rollback", "4", "--yes"]).expect(1);
    assert!(
        damaged.err.contains("generation 4 is damaged") && damaged.err.contains("as it was written"),
        "{damaged:?}"
    );
    fs::write(&file, &whole[..100]).unwrap();
    let damaged = host.palisade(&["rollback", "4", "--yes"]).expect(1);
    assert!(damaged.err.contains("isn't JSON"), "{}", damaged.err);
    fs::write(&file, whole.replace("\"version\":1", "\"version\":9")).unwrap();
    let newer = host.palisade(&["rollback", "4", "--yes"]).expect(1);
    assert!(newer.err.contains("generation 4 has format 9"), "{}", newer.err);
    assert!(history(&host)[1]["error"].as_str().unwrap().contains("format 9"));
    let gone = host.palisade(&["rollback", "2", "--yes"]).expect(1);
    assert!(gone.err.contains("there is no generation 2"), "{}", gone.err);

    // It survives `down`, and brings the stack back.
    host.palisade(&["down"]).expect(0);
    assert!(history(&host).iter().all(|seen| seen["current"] == false));
    host.palisade(&["rollback", "7", "--yes"]).expect(0);
    assert_eq!(colour(&host), "colour7\n");
    host.down();
}

#[test]
fn a_part_of_the_stack_comes_up_and_the_rest_stays() {
    need_root!("generations::a_part_of_the_stack_comes_up_and_the_rest_stays");
    let host = stage();
    host.palisade(&["up", "app"]).expect(0);
    assert!(host.pid("db.1").is_some() && host.pid("app.1").is_some() && host.pid("other.1").is_none());
    let wrong = host.palisade(&["up", "nope"]).expect(2);
    assert!(wrong.err.contains("shop has no service `nope`"), "{}", wrong.err);
    host.up();
    let (db, app, other) = (host.pid("db.1"), host.pid("app.1"), host.pid("other.1"));
    // Both change; only one is asked for.
    host.write(
        &FILE
            .replace("blue", "green")
            .replace("connect: [db]", "connect: [db], egress: none")
            .replace("    depends_on: [db]\n", "    depends_on: [db]\n    environment: { NEW: here }\n"),
    );
    host.palisade(&["stop", "other"]).expect(0);
    host.palisade(&["up", "--no-deps", "app"]).expect(0);
    assert_eq!(host.pid("db.1"), db);
    assert!(host.pid("app.1") != app && host.pid("other.1").is_none(), "{other:?} was stopped and stays so");
    assert_eq!(host.palisade(&["exec", "app", "sh", "-c", "echo $NEW"]).expect(0).out, "here\n");
    host.palisade(&["up"]).expect(0);
    assert_ne!(host.pid("db.1"), db);
    let app = host.pid("app.1");
    assert!(host.pid("other.1").is_some());

    let again = host.palisade(&["up", "--force-recreate", "--no-deps", "app"]).expect(0);
    assert!(again.err.contains("start app.1 (you asked for it)"), "{}", again.err);
    assert!(host.pid("app.1") != app && host.pid("app.1").is_some());
    host.down();
}

#[test]
fn everything_is_made_and_nothing_is_started() {
    need_root!("generations::everything_is_made_and_nothing_is_started");
    let host = stage();
    let made = host.palisade(&["up", "--no-start"]).expect(0);
    assert!(made.err.contains("guard db.1") && !made.err.contains("start db.1"), "{}", made.err);
    assert!(host.pid("db.1").is_none());
    assert_eq!(history(&host).len(), 0);
    host.up();
    let db = host.pid("db.1");
    host.write(&FILE.replace("blue", "green"));
    host.palisade(&["up", "--no-start"]).expect(0);
    assert_eq!(host.pid("db.1"), db, "it runs on as it was");
    assert_eq!(colour(&host), "blue\n");
    let wrong = host.palisade(&["up", "--no-start", "--wait"]).expect(2);
    assert!(wrong.err.contains("cannot be used with"), "{}", wrong.err);
    host.down();
}
