//! Queries to the DNS server.

use std::net::IpAddr;
use std::sync::Arc;

use dhcpd::dns::{Config, Counters, Decision, Host, Names, Server, Srv, Txt};

use crate::input::Input;

/// Clients' messages over UDP and TCP.
///
/// # Panics
/// When an answer answers an answer, is another query's, or longer than the client takes.
pub fn dns(data: &[u8]) {
    let gateway: IpAddr = [10, 77, 0, 1].into();
    let client: IpAddr = [10, 77, 0, 9].into();
    let mut config = Config::new(vec![gateway]);
    config.domain = Some("net77.test".to_owned());
    config.clients = vec!["10.77.0.0/24".parse().expect("a prefix")];
    config.reverse = config.clients.clone();
    let names = vec!["host".to_owned(), "a.long.name".to_owned()];
    config.hosts =
        (0..40).map(|n| Host { ip: [10, 77, 0, n].into(), names: names.clone() }).collect();
    config.txts = vec![Txt { name: "text".to_owned(), value: "x".repeat(700) }];
    config.srvs = vec![Srv {
        service: "ldap".to_owned(),
        protocol: "tcp".to_owned(),
        domain: None,
        target: Some("host".to_owned()),
        port: 389,
        priority: 1,
        weight: 2,
    }];
    let table = Names::default();
    table.configure(&config, &vec![([10, 77, 0, 70].into(), "named".to_owned())]);
    config.forward = data.first().is_some_and(|byte| byte & 1 != 0);
    let server = Server::new(Arc::new(config), Arc::new(table), Arc::new(Counters::default()));
    let mut input = Input(data);
    while !input.is_empty() {
        let tcp = input.u8() & 2 != 0;
        let len = usize::from(input.u16());
        let query = input.bytes(len);
        let Decision::Reply(reply) = server.decide(query, client, tcp) else { continue };
        assert!(query.len() >= 12 && query[2] & 0x80 == 0, "an answer was answered");
        assert!(reply.len() >= 12 && reply[..2] == query[..2], "another query's answer");
        assert_ne!(reply[2] & 0x80, 0, "a question was answered with a question");
        assert!(reply.len() <= if tcp { 65_535 } else { 1232 }, "{} octets", reply.len());
    }
}
