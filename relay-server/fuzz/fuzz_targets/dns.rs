//! Messages of any bytes, as questions to the relay's DNS responder: no answer, or one that is no larger than the
//! question warrants.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let values = ["a-value-of-43-characters-as-a-CA-wants-them", "another-one-of-43-characters-as-a-CA-wants-"];
    hookway_relay::check_dns_answers(input, &values);
});
