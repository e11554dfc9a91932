//! vhost-user frontends of the tests.
