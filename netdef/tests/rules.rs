//! Rules of our own: what libvirt lets through at define and fails on later, or never notices.

use netdef::model::{ForwardMode, MacTableManager, PrefixNotation};
use netdef::{Error, ErrorKind, Parsed, parse, to_xml};

fn network(inner: &str) -> String {
    format!("<network>\n  <name>n</name>\n  {inner}\n</network>\n")
}

fn accepted(inner: &str) -> Parsed {
    let text = network(inner);
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}{error:#?}"))
}

/// The error, which must point at `at` in the document and say how to mend it.
fn refused(inner: &str, at: &str, words: &str) -> Error {
    let text = network(inner);
    let error = match parse(text.as_bytes()) {
        Ok(parsed) => panic!("accepted: {text}{:#?}", parsed.network),
        Err(error) => error,
    };
    assert!(error.message.contains(words), "{inner}\n{error:#?}");
    assert!(error.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{error:#?}");
    let offset = text.rfind(at).expect("the place is in the document");
    let line = 1 + text[..offset].matches('\n').count();
    let column = offset - text[..offset].rfind('\n').map_or(0, |at| at + 1) + 1;
    let position = (error.line, error.column);
    let expected = (u32::try_from(line).ok(), u32::try_from(column).ok());
    assert_eq!(position, expected, "{text}{error:#?}");
    error
}

fn warned(inner: &str, words: &str) -> Parsed {
    let parsed = accepted(inner);
    let found = parsed.warnings.iter().any(|warning| warning.message.contains(words));
    assert!(found, "{inner}\n{:#?}", parsed.warnings);
    parsed
}

fn dhcp(inner: &str) -> String {
    format!("<ip address='10.0.0.1' prefix='24'><dhcp>{inner}</dhcp></ip>")
}

#[test]
fn gateway_addresses_are_hosts_of_their_subnet() {
    for (ip, words) in [
        ("10.0.0.0' prefix='24", "network address"),
        ("10.0.0.255' prefix='24", "broadcast address"),
        ("224.0.0.1' prefix='24", "not a unicast address"),
        ("255.255.255.255' prefix='32", "not a unicast address"),
        ("127.0.0.1' prefix='8", "loopback"),
        ("0.0.0.0' prefix='32", "unspecified"),
        ("2001:db8::' family='ipv6' prefix='64", "anycast"),
        ("ff02::1' family='ipv6' prefix='64", "not a unicast address"),
        ("::1' family='ipv6' prefix='128", "loopback"),
    ] {
        let value = ip.split('\'').next().unwrap_or_default();
        refused(&format!("<ip address='{ip}'/>"), value, words);
    }
    accepted("<ip address='10.0.0.0' prefix='31'/>");
    accepted("<ip address='10.0.0.7' prefix='32'/>");
}

#[test]
fn netmasks_are_ones_then_zeros() {
    refused("<ip address='10.0.0.1' netmask='255.0.255.0'/>", "255.0.255.0", "Invalid netmask");
    refused("<ip address='10.0.0.1' netmask='0.0.0.0'/>", "0.0.0.0", "Invalid netmask");
    let parsed = accepted("<ip address='10.0.0.1' netmask='255.255.240.0'/>");
    assert_eq!(parsed.network.ips[0].net.prefix_len(), 20);
    assert_eq!(parsed.network.ips[0].notation, PrefixNotation::Netmask);
}

#[test]
fn short_addresses_are_traps() {
    let error = refused("<ip address='10.1' prefix='24'/>", "10.1", "Invalid address '10.1'");
    assert!(error.remedy.is_some_and(|remedy| remedy.contains("all four numbers")));
    refused("<ip address='010.0.0.1' prefix='24'/>", "010.0.0.1", "Invalid address");
}

#[test]
fn subnets_of_a_network_do_not_overlap() {
    let second = "<ip address='10.0.128.1' prefix='24'/>";
    let error =
        refused(&format!("<ip address='10.0.0.1' prefix='16'/>{second}"), second, "overlaps");
    assert_eq!(error.element.as_deref(), Some("network/ip[2]"));
    refused(
        &format!("{second}<ip address='10.0.0.1' prefix='8'/>"),
        "<ip address='10.0.0.1'",
        "overlaps",
    );
    refused(
        "<ip address='10.0.0.1' prefix='24'/><ip address='10.0.0.2' prefix='24'/>",
        "<ip address='10.0.0.2'",
        "overlaps",
    );
    accepted("<ip address='10.0.0.1' prefix='24'/><ip address='10.0.1.1' prefix='24'/>");
}

#[test]
fn ranges_are_disjoint() {
    let range = |start: u8, end: u8| format!("<range start='10.0.0.{start}' end='10.0.0.{end}'/>");
    let error = refused(&dhcp(&(range(2, 9) + &range(9, 20))), &range(9, 20), "overlaps");
    assert_eq!(error.element.as_deref(), Some("network/ip[1]/dhcp/range[2]"));
    // The later one in the document is blamed, also when it starts before the other.
    refused(&dhcp(&(range(9, 20) + &range(2, 9))), &range(2, 9), "overlaps");
    refused(&dhcp(&(range(2, 9) + &range(2, 9))), &range(2, 9), "overlaps");
    let parsed = accepted(&dhcp(&(range(9, 20) + &range(1, 8))));
    assert_eq!(parsed.network.ips[0].dhcp.as_ref().map(|dhcp| dhcp.ranges.len()), Some(2));
}

#[test]
fn static_hosts_have_free_addresses_of_the_subnet() {
    let host = |ip: &str| dhcp(&format!("<host name='a' ip='{ip}'/>"));
    for (ip, words) in [
        ("10.0.1.2", "not within the network"),
        ("fd00::1", "not within the network"),
        ("10.0.0.0", "network address"),
        ("10.0.0.255", "broadcast address"),
    ] {
        refused(&host(ip), ip, words);
    }
    refused(&host("10.0.0.1"), "10.0.0.1", "gateway's own");
}

#[test]
fn static_hosts_are_unique() {
    let pair = |a: &str, b: &str| dhcp(&format!("<host {a}/><host {b}/>"));
    refused(
        &pair("name='a' ip='10.0.0.2'", "name='b' ip='10.0.0.2'"),
        "10.0.0.2",
        "existing dhcp host",
    );
    refused(
        &pair("name='ab' ip='10.0.0.2'", "name='AB' ip='10.0.0.3'"),
        "AB",
        "existing dhcp host",
    );
    refused(
        &pair("mac='52:54:00:0:0:a' ip='10.0.0.2'", "mac='52:54:00:00:00:0A' ip='10.0.0.3'"),
        "52:54:00:00:00:0A",
        "with mac '52:54:00:00:00:0a'",
    );
}

#[test]
fn names_are_dns_names() {
    refused(&dhcp("<host name='a b' ip='10.0.0.2'/>"), "a b", "Cannot use host name");
    refused(&dhcp("<host name='a,b' ip='10.0.0.2'/>"), "a,b", "Cannot use host name");
    refused("<domain name='a..b'/>", "a..b", "invalid DNS name");
    let long = "x".repeat(64);
    refused(&format!("<domain name='{long}'/>"), &long, "invalid DNS name");
    refused(
        "<dns><host ip='10.0.0.1'><hostname>a\nb</hostname></host></dns>",
        "<hostname>",
        "invalid DNS name 'a\\n",
    );
    accepted("<domain name='a-b.c_d.example.'/>");
}

#[test]
fn mtu_has_bounds() {
    for size in ["67", "65536", "4000000000"] {
        refused(&format!("<mtu size='{size}'/>"), size, &format!("Invalid mtu size '{size}'"));
    }
    let six = "<ip family='ipv6' address='fd00::1' prefix='64'/>";
    refused(&format!("<mtu size='1279'/>{six}"), "1279", "Invalid mtu size");
    assert_eq!(accepted("<mtu size='68'/>").network.mtu, Some(68));
    assert_eq!(accepted("<mtu size='65535'/>").network.mtu, Some(65535));
}

#[test]
fn interface_names_fit_the_kernel_and_rules() {
    let bridge = |name: &str| format!("<bridge name='{name}'/>");
    for name in
        ["sixteen-letters-", "a/b", "a b", "a:b", "é", "-x", "..", "a%db%d", "virbr-longer-%d"]
    {
        let error = refused(&bridge(name), &format!("{name}'/>"), "interface name");
        assert!(error.message.contains(name) || name == "é", "{error:?}");
    }
    for name in ["fifteen-letters", "virbr%d", "rt0", "drop", "br0.5"] {
        assert_eq!(accepted(&bridge(name)).network.bridge.name.as_deref(), Some(name));
    }
    refused(
        "<forward mode='nat' dev='eth*'/><ip address='10.0.0.1' prefix='24'/>",
        "eth*",
        "invalid character '*'",
    );
}

#[test]
fn port_ranges_have_two_ends() {
    let ports = |start: u32, end: u32| {
        format!(
            "<forward mode='nat'><nat><port start='{start}' end='{end}'/></nat></forward><ip address='10.0.0.1' prefix='24'/>"
        )
    };
    refused(&ports(5, 5), "<port", "Invalid port range '5-5'");
    refused(&ports(0, 5), "<port", "Invalid port range '0-5'");
    accepted(&ports(5, 6));
}

#[test]
fn vlan_identifiers_are_usable() {
    refused("<vlan><tag id='0'/></vlan>", "0'/></vlan>", "reserved");
    refused("<vlan><tag id='4095'/></vlan>", "4095", "reserved");
    refused("<vlan><tag id='7'/><tag id='7'/></vlan>", "7'/></vlan>", "listed twice");
    let vlan = accepted("<vlan><tag id='7'/></vlan>").network.vlan.expect("a vlan");
    assert!(!vlan.trunk);
    let vlan = accepted("<vlan><tag id='7'/><tag id='8'/></vlan>").network.vlan.expect("a vlan");
    assert!(vlan.trunk);
}

#[test]
fn modes_of_real_hardware_are_refused_with_a_way_out() {
    for mode in ["private", "vepa", "passthrough", "hostdev"] {
        let error = refused(&format!("<forward mode='{mode}' dev='eth0'/>"), mode, "not available");
        assert_eq!(error.kind, ErrorKind::Unsupported);
    }
    let pool = "<forward mode='bridge'><interface dev='eth0'/><interface dev='eth1'/></forward>";
    assert_eq!(refused(pool, "<interface", "pool").kind, ErrorKind::Unsupported);
    refused("<forward mode='bridge'/>", "<forward", "neither a bridge name nor a forward dev");
}

#[test]
fn what_restricts_traffic_is_refused_until_it_works() {
    for (inner, at) in [
        ("<bandwidth><inbound average='1000'/></bandwidth>", "<bandwidth"),
        ("<portgroup name='a'><bandwidth/></portgroup>", "<bandwidth"),
        ("<filterref filter='clean-traffic'/>", "<filterref"),
        ("<portgroup name='a'><port isolated='yes'/></portgroup>", "<port isolated"),
        ("<bridge name='b' zone='dmz'/>", "dmz"),
    ] {
        let error = refused(inner, at, "");
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error:?}");
    }
}

#[test]
fn doubles_are_refused() {
    let error =
        refused("<bridge name='a'/>\n  <bridge name='b'/>", "<bridge", "'bridge' appears twice");
    assert!(error.remedy.is_some_and(|remedy| remedy.contains("line 3")));
}

#[test]
fn names_become_file_names() {
    for (name, words) in [
        ("a/b", "invalid char in name: /"),
        ("a\nb", "invalid char in name: \\n"),
        ("a&#9;b", "invalid char in name: \\t"),
        ("..", "invalid network name '..'"),
    ] {
        let text = format!("<network><name>{name}</name></network>");
        let error = parse(text.as_bytes()).expect_err("refused");
        assert_eq!(error.message.trim_start_matches("XML error: "), words);
        assert!(error.remedy.is_some());
    }
    let long = format!("<network><name>{}</name></network>", "x".repeat(201));
    assert!(parse(long.as_bytes()).is_err());
    for name in ["drop", "a b", "table inet x", "é", "-"] {
        let text = format!("<network><name>{name}</name></network>");
        assert_eq!(parse(text.as_bytes()).expect("fine").network.name, name);
    }
}

#[test]
fn unknown_elements_are_kept_with_a_warning() {
    let inner = "<color x='1'><deep>a &lt; b</deep></color>\n  \
        <ip address='10.0.0.1' prefix='24'><v6only/></ip>\n  \
        <dns><odd/></dns><x:y xmlns:x='urn:x'><x:z/></x:y>";
    let parsed = warned(inner, "element 'color' is not known: it is kept and has no effect");
    assert_eq!(parsed.warnings.len(), 4, "{:#?}", parsed.warnings);
    assert_eq!((parsed.warnings[0].line, parsed.warnings[0].column), (3, 3));
    assert_eq!(parsed.warnings[0].element, "network/color");
    let xml = to_xml(&parsed.network);
    assert_eq!(
        xml,
        "<network>
  <name>n</name>
  <bridge stp='on' delay='0'/>
  <dns>
    <odd/>
  </dns>
  <ip address='10.0.0.1' prefix='24'>
    <v6only/>
  </ip>
  <color x=\"1\">
    <deep>a &lt; b</deep>
  </color>
  <x:y xmlns:x=\"urn:x\">
    <x:z/>
  </x:y>
</network>
"
    );
    assert_eq!(to_xml(&parse(xml.as_bytes()).expect("read back").network), xml);
}

#[test]
fn dnsmasq_options_are_kept_in_libvirts_form() {
    let text = "<network xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>
  <name>n</name>
  <bridge stp='on' delay='0'/>
  <dnsmasq:options>
    <dnsmasq:option value='foo=bar'/>
    <dnsmasq:option value='cname=*.foo,&quot;b&quot;'/>
  </dnsmasq:options>
</network>
";
    let parsed = parse(text.as_bytes()).expect("accepted");
    assert_eq!(parsed.warnings.len(), 1, "{:?}", parsed.warnings);
    assert_eq!(parsed.network.dnsmasq_options.len(), 2);
    assert_eq!(to_xml(&parsed.network), text);
}

#[test]
fn texts_are_kept() {
    let text = "<network>
  <name>n</name>
  <title>A title &lt;&apos;&gt;</title>
  <description>two
lines &amp; &quot;quotes&quot; ü</description>
  <bridge stp='on' delay='0'/>
</network>
";
    assert_eq!(to_xml(&parse(text.as_bytes()).expect("accepted").network), text);
}

#[test]
fn what_has_no_effect_is_said() {
    warned("<bridge macTableManager='libvirt'/>", "macTableManager");
    warned("<virtualport type='openvswitch'/>", "no effect");
    warned("<ip address='10.0.0.1' prefix='24'><tftp root='/x'/></ip>", "TFTP");
    warned("<forward mode='none'><interface dev='x'/></forward>", "dropped");
    warned("<bridge colour='red'/>", "attribute 'colour' of element 'bridge' is not known");
    warned(&dhcp("<bootp file='x'/>"), "without <range> or <host>");
    let v6 = "<ip family='ipv6' address='fd00::1' prefix='64'><dhcp><range start='fd00::2' end='fd00::9'/></dhcp></ip>";
    let parsed = warned(v6, "DHCP of IPv6 is accepted and has no effect yet");
    assert!(parsed.network.ips[0].dhcp.is_some());
}

#[test]
fn modes_are_read() {
    for (forward, mode) in [
        ("", ForwardMode::Isolated),
        ("<forward/>", ForwardMode::Nat),
        ("<forward mode='route'/>", ForwardMode::Route),
        ("<forward mode='open'/>", ForwardMode::Open),
    ] {
        let parsed = accepted(&format!("{forward}<ip address='10.0.0.1' prefix='24'/>"));
        assert_eq!(parsed.network.forward.mode, mode);
    }
    let parsed = accepted("<forward mode='bridge'/><bridge name='br0' macTableManager='libvirt'/>");
    assert_eq!(parsed.network.forward.mode, ForwardMode::Bridge);
    assert_eq!(parsed.network.bridge.mac_table_manager, Some(MacTableManager::Libvirt));
}

#[test]
fn syntax_errors_quote_the_line_as_libvirt_does() {
    let cases = [
        (
            "<network>\n  <name>t1</nam>\n</network>",
            "at line 2: Opening and ending tag mismatch: name line 2 and nam\n  <name>t1</nam>\n----------------^",
        ),
        (
            "<network><name>t1</name>\n",
            "at line 1: Premature end of data in tag network line 1\n<network><name>t1</name>\n------------------------^",
        ),
        ("", "at line 1: Document is empty\n\n^"),
        ("hello", "at line 1: Start tag expected, '<' not found\nhello\n^"),
        ("hello <network/>", "at line 1: Start tag expected, '<' not found\nhello <network/>\n^"),
        (
            "<network><name>t1&foo;</name></network>",
            "at line 1: Entity 'foo' not defined\n<network><name>t1&foo;</name></network>\n-----------------^",
        ),
        (
            "<network><name a=1>t1</name></network>",
            "at line 1: AttValue: \" or ' expected\n<network><name a=1>t1</name></network>\n-----------------^",
        ),
        (
            "<network><name a='1' a='2'>t1</name></network>",
            "at line 1: Attribute a redefined\n<network><name a='1' a='2'>t1</name></network>\n---------------------^",
        ),
        (
            "<network><name>t1</name></network><x/>",
            "at line 1: Extra content at the end of the document\n<network><name>t1</name></network><x/>\n----------------------------------^",
        ),
    ];
    for (text, message) in cases {
        let error = parse(text.as_bytes()).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Syntax, "{text}");
        assert_eq!(error.message, message, "{text}");
    }
}

#[test]
fn only_utf8_is_read() {
    let error = parse(b"<network><name>\xff</name></network>").expect_err("not UTF-8");
    assert_eq!((error.kind, error.line, error.column), (ErrorKind::Syntax, Some(1), Some(16)));
    let latin = "<?xml version='1.0' encoding='ISO-8859-1'?><network><name>a</name></network>";
    assert!(parse(latin.as_bytes()).is_err());
    let utf8 =
        "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<network><name>a</name></network>";
    assert_eq!(parse(utf8.as_bytes()).expect("accepted").network.name, "a");
    let error = parse("<network><name>a\u{9b}b</name></network>".as_bytes()).expect_err("control");
    assert!(!error.message.contains('\u{9b}'), "no terminal sequences in messages");
}

#[test]
fn entities_are_never_expanded() {
    let text = "<!DOCTYPE network [<!ENTITY a 'b'>]>\n<network><name>&a;</name></network>";
    let error = parse(text.as_bytes()).expect_err("refused");
    assert!(error.message.contains("document type"), "{error:?}");
    assert!(error.remedy.is_some());
}

#[test]
fn the_switch_is_set_in_the_metadata() {
    let network = |attributes: &str| {
        let xml = format!(
            "<network><name>n</name><metadata><n:switch xmlns:n='urn:netloom:network:1' \
             {attributes}/></metadata></network>"
        );
        parse(xml.as_bytes()).map(|parsed| parsed.network)
    };
    let hub = network("mode='hub' ageing='60' hub-socket='no'").expect("a hub");
    assert_eq!(hub.switch.hub_socket, Some(false));
    assert!(hub.switch.hub);
    assert_eq!(hub.switch.ageing, Some(std::time::Duration::from_secs(60)));
    let again = parse(to_xml(&hub).as_bytes()).expect("its own form").network;
    assert_eq!(again.switch, hub.switch);
    for (attributes, remedy) in
        [("mode='bus'", "hub"), ("ageing='5'", "3600"), ("hub-socket='on'", "yes or no")]
    {
        let error = network(attributes).expect_err(attributes);
        assert!(error.remedy.is_some_and(|text| text.contains(remedy)) && error.line == Some(1));
    }
}
