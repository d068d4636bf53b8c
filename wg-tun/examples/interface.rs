//! A WireGuard interface from the command line, for experiments: name, own key byte, peer's key byte, prefix, and an
//! endpoint or `-`. Keys made of one byte are no secret.
//!
//! `cargo run --release --example interface -- wg0 1 2 10.9.0.2/32 192.0.2.2:51820`

use std::error::Error;
use std::io::Read;

use wg_core::PrivateKey;
use wg_tun::{Device, DeviceConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, own, peer, prefix, endpoint] = &arguments[..] else {
        return Err("usage: interface NAME OWN-BYTE PEER-BYTE PREFIX ENDPOINT|-".into());
    };
    let own = PrivateKey::from_bytes([own.parse()?; 32]);
    let peer = PrivateKey::from_bytes([peer.parse()?; 32]).public_key();
    let device = Device::open(DeviceConfig::new(name))?;
    device.set_listen_port(51820)?;
    device.configure(|engine, now| -> Result<(), Box<dyn Error>> {
        engine.set_private_key(Some(own), now);
        let id = engine.add_peer(peer)?;
        engine.add_allowed_ip(id, prefix.parse()?)?;
        if endpoint != "-" {
            engine.set_endpoint(id, endpoint.parse()?, now)?;
        }
        Ok(())
    })?;
    println!("{} is there; end it by closing standard input", device.name());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", device.engine().counters());
    Ok(())
}
