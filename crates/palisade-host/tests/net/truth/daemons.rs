//! Rulesets of real firewalls and engines.
