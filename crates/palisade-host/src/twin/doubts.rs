//! On what, besides the port, a rule may depend: what one packet a port can't show.
//!
//! Rules are only looked through for words here, so there may be a remark too much, and none too few.

use std::collections::BTreeSet;

use super::patient::without_quotes;
use super::ruleset::Why;

/// Of a rule of `nft`.
pub(super) fn doubts(rule: &str) -> BTreeSet<Why> {
    let bare = format!(" {} ", without_quotes(rule));
    let has = |words: &[&str]| words.iter().any(|word| bare.contains(word));
    let mut found = BTreeSet::new();
    // A rule that only takes away from certain sources doesn't let anybody in that the probe isn't.
    let may_let_in = has(&["!="]) || !has(&[" drop ", " reject "]);
    if has(&[" saddr ", " sport ", " jhash ", " symhash ", " osf "]) && may_let_in {
        found.insert(Why::Source);
    }
    if has(&[
        " length ",
        " ttl ",
        " hoplimit ",
        " dscp ",
        " tcp option ",
        " @th,",
        " @nh,",
        " @ih,",
        " @ll,",
        " exthdr ",
    ]) {
        found.insert(Why::Content);
    }
    if has(&[" add @", " update @", " meter ", " quota ", " limit name ", " ct mark ", " numgen inc ", " synproxy "]) {
        found.insert(Why::State);
    }
    if has(&[" meta hour ", " meta day ", " meta time ", " hour ", " day ", " numgen random "]) {
        found.insert(Why::Chance);
    }
    if has(&[" queue ", " tproxy ", " socket "]) {
        found.insert(Why::Process);
    }
    if has(&[" iiftype ", " iifkind ", " iifgroup ", " ibrname ", " ibriport ", " rtclassid ", " ipsec ", " tunnel "]) {
        found.insert(Why::NotCopied);
    }
    found
}

/// Of a rule of iptables.
pub(super) fn iptables_doubts(rule: &str) -> BTreeSet<Why> {
    let bare = format!(" {} ", without_quotes(rule));
    let has = |words: &[&str]| words.iter().any(|word| bare.contains(word));
    let mut found = BTreeSet::new();
    if has(&[
        " -s ",
        " --sport ",
        " --sports ",
        " --ports ",
        " --src-range ",
        " --match-set ",
        " --mac-source ",
        " -m osf ",
    ]) && (has(&[" ! "]) || !has(&[" -j DROP ", " -j REJECT "]))
    {
        found.insert(Why::Source);
    }
    if has(&["-m length ", "-m ttl ", "-m hl ", "-m dscp ", "-m tos ", "-m ecn ", "-m string ", "-m u32 ", "-m bpf "]) {
        found.insert(Why::Content);
    }
    if has(&[
        "-m recent ",
        "-m hashlimit ",
        "-m connlimit ",
        "-m quota ",
        "-m connmark ",
        "-m connbytes ",
        "--match-set ",
        "-j SET ",
        "-j SYNPROXY ",
    ]) {
        found.insert(Why::State);
    }
    if has(&["-m time ", "-m statistic "]) {
        found.insert(Why::Chance);
    }
    if has(&["-j NFQUEUE ", "-j TPROXY ", "-m socket "]) {
        found.insert(Why::Process);
    }
    if has(&["-m physdev ", "-m devgroup ", "-m realm ", "-m policy ", "-m cpu "]) {
        found.insert(Why::NotCopied);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_packet_cannot_show_is_told() {
        let of = |rule| doubts(rule).into_iter().collect::<Vec<_>>();
        assert_eq!(of("ip saddr 10.0.0.0/8 tcp dport 22 accept"), [Why::Source]);
        assert_eq!(of("ip saddr 10.0.0.0/8 drop"), []);
        assert_eq!(of("ip saddr != 10.0.0.0/8 drop"), [Why::Source]);
        assert_eq!(of("tcp dport 23 add @banned { ip saddr }"), [Why::Source, Why::State]);
        assert_eq!(of("tcp dport 22 accept comment \"ip saddr \""), []);
        assert_eq!(of("queue flags bypass to 0"), [Why::Process]);
        assert_eq!(of("meta length 0-100 accept"), [Why::Content]);
        assert_eq!(of("tcp dport 22 accept"), []);
    }

    #[test]
    fn iptables_says_it_in_other_words() {
        let of = |rule| iptables_doubts(rule).into_iter().collect::<Vec<_>>();
        assert_eq!(of("-A INPUT -s 10.0.0.0/8 -j ACCEPT"), [Why::Source]);
        assert_eq!(of("-A INPUT -s 10.0.0.0/8 -j DROP"), []);
        assert_eq!(of("-A INPUT -m set --match-set banned src -j DROP"), [Why::State]);
        assert_eq!(of("-A INPUT -m comment --comment \" -s \" -j ACCEPT"), []);
    }
}
