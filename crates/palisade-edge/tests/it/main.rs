//! The edge as a process, between real clients and real servers on loopback.

mod answers;
mod certificates;
mod child;
mod clients;
mod floods;
mod forwarding;
mod frames;
mod h2c;
mod heads;
mod hostile;
mod http2;
mod http3;
mod limits;
mod own_answers;
mod plain_http;
mod rates;
mod resting;
mod retries;
mod streams;
mod support;
mod unread;
mod upgrades;
mod upstream;
