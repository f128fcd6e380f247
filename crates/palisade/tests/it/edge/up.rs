//! Up, asked, and down.

use super::shop::{APP, Shop};
use crate::need_root;

#[test]
fn a_stack_is_served_over_https_and_nothing_is_left_of_it() {
    need_root!("edge::up::a_stack_is_served_over_https_and_nothing_is_left_of_it");
    let shop = Shop::new(APP);
    let (code, text) = shop.curl(&["-i", "http://shop.example/x?y=1"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("HTTP/1.1 308 "), "{text}");
    assert!(text.to_ascii_lowercase().contains("location: https://shop.example/x?y=1"), "{text}");
    for version in ["--http1.1", "--http2"] {
        let (code, text) = shop.curl(&[version, "https://shop.example/", "-H", "X-Forwarded-For: 192.0.2.1"]);
        assert_eq!(code, Some(0), "{text}");
        let expected =
            "version 1 Host=shop.example X-Real-IP=203.0.113.2 X-Forwarded-For=203.0.113.2 X-Forwarded-Proto=https";
        assert!(text.starts_with(expected), "{text}");
    }
    assert_eq!(shop.0.all_open_to_strangers(&[80, 443, 8080, 8081, 8443, 5432]), [80, 443]);
    shop.0.palisade(&["prove"]).expect(0);
    let ran = shop.0.palisade(&["plan"]).expect(0);
    assert!(ran.out.contains("nothing to change"), "{}", ran.out);
    shop.0.down();
}
