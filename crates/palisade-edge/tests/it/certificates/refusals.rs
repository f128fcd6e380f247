//! Authorities that refuse: which one is left alone, for how long, and who is asked in its place.

use super::between::{Between, Rule, problem};
use super::pebble::{self, Authority};
use super::stack::Stack;
use crate::support::{DOMAIN, free_address, wait_until};
use http_body_util::{BodyExt, Full};
use instant_acme::{Account, AccountCredentials, BodyWrapper, BytesResponse, HttpClient};
use palisade_core::edge::{Challenge, ExternalAccount};
use palisade_edge::acme::Outcome;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::{Command, Stdio};

const HOUR_S: u64 = 3_600;

fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn rate_limited(stack: &Stack, authority: &Authority, for_s: u64) -> Between {
    let between = Between::new(authority, stack);
    let head = format!("429 Too Many\r\nContent-Type: application/problem+json\r\nRetry-After: {for_s}");
    between.rules([Rule::Answer("/order-plz", head, problem("rateLimited"))]);
    between
}

#[test]
fn an_authority_that_demands_to_be_left_alone_keeps_nobody_from_asking_another() {
    if !pebble::is_here("a demand to wait") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let (first, mut second) = (Authority::start(stack.wish()), Authority::start(stack.wish()));
    // Longer than any pause of the worker's own.
    let limited = rate_limited(&stack, &first, 34 * HOUR_S);
    second.down();
    stack.order_from(vec![limited.directory.clone(), second.directory()]);
    let outcome = stack.look();
    let Outcome::Waiting { text, again_s } = outcome else { panic!("{outcome:?}") };
    assert!(text.contains("rateLimited"), "{text}");
    assert!(again_s < now_s() + HOUR_S / 2, "who is only away is asked again soon: {} s", again_s - now_s());
    // Nobody has to wait for either who restarts the worker when the second is back.
    second.up();
    let worker = stack.start_worker();
    wait_until("there is a certificate", || stack.kinds().iter().any(|kind| kind == "certificate_served"));
    drop(worker);
    assert_eq!((limited.asked("/order-plz"), second.orders()), (1, 1));
}

#[test]
fn a_demand_that_is_longer_than_any_limit_is_heeded_for_days() {
    if !pebble::is_here("a long demand to wait") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    let limited = rate_limited(&stack, &authority, 30 * 24 * HOUR_S);
    stack.order_from(vec![limited.directory.clone()]);
    let outcome = stack.look();
    let Outcome::Waiting { again_s, .. } = outcome else { panic!("{outcome:?}") };
    assert!(again_s > now_s() + 7 * 24 * HOUR_S && again_s <= now_s() + 8 * 24 * HOUR_S, "{again_s} at {}", now_s());
    stack.fail();
    assert_eq!(limited.asked("/order-plz"), 1);
}

#[test]
fn what_was_mended_is_tried_at_once() {
    if !pebble::is_here("mended settings") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    wish.external = Some(("kid-1", key));
    let authority = Authority::start(wish);
    let key_file = stack.worker.state.parent().expect("it has one").join("eab");
    std::fs::write(&key_file, key.replace("zW", "Wz")).expect("the folder is there");
    let mut directory = authority.directory();
    directory.eab = Some(ExternalAccount { key_id: "kid-1".to_owned(), key_file: key_file.clone() });
    stack.order_from(vec![directory]);
    stack.fail();
    let asked = authority.log().len();
    stack.fail();
    assert_eq!(authority.log().len(), asked, "it has refused, and nothing is new");
    std::fs::write(&key_file, key).expect("it is there");
    stack.obtain();
}

#[test]
fn another_authority_that_is_named_later_is_asked_at_once() {
    if !pebble::is_here("an authority that is named later") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    wish.blocked = vec![DOMAIN];
    let (refuses, issues) = (Authority::start(wish), Authority::start(stack.wish()));
    stack.order_from(vec![refuses.directory()]);
    stack.fail();
    stack.order_from(vec![refuses.directory(), issues.directory()]);
    stack.obtain();
}

#[test]
fn what_only_this_authority_minds_is_tried_at_the_next_and_what_all_would_find_isnt() {
    if !pebble::is_here("a CAA record") {
        return;
    }
    for (kind, is_everywhere) in [("caa", false), ("connection", true)] {
        let mut stack = Stack::new(Challenge::Http01);
        // It looks where nobody listens, and says that it is something else.
        let mut wish = stack.wish();
        wish.http = free_address();
        let (first, second) = (Authority::start(wish), Authority::start(stack.wish()));
        let between = Between::new(&first, &stack);
        between.rules([Rule::Replace("acme:error:connection".to_owned(), format!("acme:error:{kind}"))]);
        stack.order_from(vec![between.directory.clone(), second.directory()]);
        match is_everywhere {
            true => assert!(stack.fail().contains("(connection)")),
            false => stack.obtain(),
        }
        let said = stack.events()[0]["details"]["error"].to_string();
        assert!(said.contains(&format!("({kind})")), "{said}");
        assert_eq!(second.orders(), usize::from(!is_everywhere));
    }
}

/// Asks as whoever has an account's key.
struct Curl;

impl HttpClient for Curl {
    fn request(
        &self,
        request: hyper::Request<BodyWrapper<bytes::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("it is whole").to_bytes();
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--insecure", "--include", "--http1.1", "--noproxy", "*"]);
            match parts.method {
                hyper::Method::HEAD => curl.arg("--head"),
                hyper::Method::GET => &mut curl,
                _ => curl.args(["--header", "Content-Type: application/jose+json", "--data-binary", "@-"]),
            };
            curl.arg(parts.uri.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut curl = curl.spawn().expect("curl is installed");
            // Where nothing is sent it may have ended by now.
            let _ = curl.stdin.take().expect("it is piped").write_all(&body);
            let output = curl.wait_with_output().expect("it ends");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
            let mut lines = head.lines();
            let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
            let mut answer = hyper::Response::builder().status(status);
            for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
                answer = answer.header(name, value);
            }
            let body = Full::new(bytes::Bytes::from(body.to_owned()));
            Ok(BytesResponse::from(answer.body(body).expect("an answer")))
        })
    }
}

/// Closes the account that the worker has with its one authority.
fn close_account(stack: &Stack) {
    let mut accounts = stack.worker.state.join("accounts").read_dir().expect("the folder is there").flatten();
    let kept = std::fs::read(accounts.next().expect("there is one").path()).expect("it can be read");
    let mut kept: serde_json::Value = serde_json::from_slice(&kept).expect("it is whole");
    let credentials: AccountCredentials = serde_json::from_value(kept["credentials"].take()).expect("credentials");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let account = Account::builder_with_http(Box::new(Curl)).from_credentials(credentials).await;
        account.expect("its directory is there").deactivate().await.expect("it may be closed");
    });
}

#[test]
fn an_account_that_was_closed_is_made_anew() {
    if !pebble::is_here("a closed account") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    // Each refused nonce is one more request.
    wish.bad_nonces = 0;
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    stack.obtain();
    close_account(&stack);
    std::fs::remove_file(stack.certificate()).expect("it was obtained");
    stack.obtain();
    assert_eq!(authority.log().matches("POST /sign-me-up").count(), 2, "{}", authority.log());
}

#[test]
fn who_may_order_nothing_is_no_reason_not_to_ask_another_nor_to_make_accounts() {
    if !pebble::is_here("an account without rights") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    // One that refuses a nonce is asked twice for the same account.
    wish.bad_nonces = 0;
    let (first, second) = (Authority::start(wish), Authority::start(stack.wish()));
    let between = Between::new(&first, &stack);
    let head = "403 Forbidden\r\nContent-Type: application/problem+json".to_owned();
    between.rules([Rule::Answer("/order-plz", head, problem("unauthorized"))]);
    stack.order_from(vec![between.directory.clone(), second.directory()]);
    stack.obtain();
    assert_eq!((between.asked("/sign-me-up"), second.orders()), (1, 1));
}

#[test]
fn an_order_on_its_way_is_gone_on_with_before_another_is_made() {
    if !pebble::is_here("an order at the second authority") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let (mut first, mut second) = (Authority::start(stack.wish()), Authority::start(stack.wish()));
    stack.order_from(vec![first.directory(), second.directory()]);
    // In the way of the file: the order stays on its way until then.
    std::fs::create_dir(stack.certificate()).expect("the folder is there");
    first.down();
    stack.fail();
    assert_eq!(second.orders(), 1, "the first is away");
    first.up();
    stack.wait_over();
    stack.fail();
    assert_eq!((first.orders(), second.orders()), (0, 1));
    // While the second is away in turn, its order isn't forgotten for one at the first.
    second.down();
    stack.wait_over();
    stack.fail();
    assert_eq!(first.orders(), 1);
    let noted = stack.remembered()["orders"].clone();
    assert_eq!(noted.as_object().map(serde_json::Map::len), Some(2), "{noted}");
    std::fs::remove_dir(stack.certificate()).expect("it is empty");
    stack.wait_over();
    stack.obtain();
    assert_eq!(first.orders(), 1);
    assert_eq!(stack.remembered()["orders"], serde_json::json!({}), "one certificate is enough");
}

#[test]
fn restarts_in_the_middle_of_an_order_go_on_with_it_and_others_are_told_apart() {
    if !pebble::is_here("restarts") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    std::fs::create_dir(stack.certificate()).expect("the folder is there");
    stack.fail();
    // As three processes that were killed leave it.
    stack.note(|memory| memory["begun"] = 3.into());
    stack.wait_over();
    std::fs::remove_dir(stack.certificate()).expect("it is empty");
    stack.obtain();
    assert_eq!(authority.orders(), 1);
    // Where nothing was ordered they are this host's trouble, which no authority is asked about.
    std::fs::remove_file(stack.certificate()).expect("it was obtained");
    stack.note(|memory| memory["begun"] = 3.into());
    assert!(stack.fail().contains("cut short"));
    let event = stack.events().pop().expect("it was told");
    assert_eq!((&event["kind"], &event["details"]["why"]), (&"certificate_failed".into(), &"host".into()));
    assert_eq!(authority.orders(), 1);
}

#[test]
fn an_authority_without_a_word_on_renewal_isnt_asked_at_each_look() {
    if !pebble::is_here("no renewal windows") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    let between = Between::new(&authority, &stack);
    stack.order_from(vec![between.directory.clone()]);
    stack.obtain();
    let asked = between.asked("/dir");
    for _ in 0..3 {
        assert!(matches!(stack.look(), Outcome::Kept { .. }));
    }
    assert_eq!(between.asked("/dir"), asked + 1);
    // An hour later it may have one.
    stack.note(|memory| memory["silent"][1] = 0.into());
    assert!(matches!(stack.look(), Outcome::Kept { .. }));
    assert_eq!(between.asked("/dir"), asked + 2);
}
