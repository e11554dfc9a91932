//! Out of service, and why.

#![allow(dead_code, unreachable_pub, reason = "the model uses a part of the file")]

#[path = "../../datapath/src/port/vhost_user/quarantine.rs"]
mod quarantine;
#[path = "support/sync.rs"]
mod sync;

use loom::sync::Arc;
use loom::thread;

use quarantine::Quarantine;

#[test]
fn one_of_two_faults_is_told_and_both_have_the_first_reason() {
    loom::model(|| {
        let port = Arc::new(Quarantine::default());
        let worker = thread::spawn({
            let port = Arc::clone(&port);
            move || port.begin("one".to_owned())
        });
        let told = port.begin("two".to_owned());
        let reason = port.reason();
        let told_other = worker.join().expect("a worker");
        assert_ne!(told, told_other, "one notice");
        assert!(port.is_on());
        assert_eq!(reason, port.reason());
        assert_eq!(reason.as_deref(), Some(if told { "two" } else { "one" }));
    });
}

/// A worker finds a fault while the frontend begins anew: in service without a reason, or out of it with one.
#[test]
fn a_fault_beside_a_release_is_told_or_gone() {
    loom::model(|| {
        let port = Arc::new(Quarantine::default());
        assert!(port.begin("first".to_owned()));
        let worker = thread::spawn({
            let port = Arc::clone(&port);
            move || port.begin("second".to_owned())
        });
        port.end();
        let told = worker.join().expect("a worker");
        assert_eq!(port.is_on(), told, "a fault that stays was told");
        assert_eq!(port.reason().as_deref(), told.then_some("second"));
    });
}
