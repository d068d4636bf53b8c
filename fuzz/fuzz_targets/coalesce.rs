#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wgd_fuzz::coalesce::check(bytes));
