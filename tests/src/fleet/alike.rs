//! A fleet answers as one shard does.
//!
//! [`one_at_a_time`] plays the oracle's scripts on four connections, to different shards, one burst after the other,
//! on a fleet and on one engine: the same bytes must come back. What may differ is the order of KEYS, what RANDOMKEY
//! picks and the cursors of SCAN; of SCAN's replies every full one is compared. [`streams`] has clients send all at once,
//! each in a room of its own: each must read what it would read alone.

use super::script::{Script, is_about_data, without_client_ids};
use super::{Fleet, Plan, Wire};
use crate::oracle::command::{Command, Step};
use crate::oracle::grammar::{CONNECTIONS, Grammar};
use crate::oracle::value::{Value, show_bytes};
use crate::random::Random;

/// At least so many commands, one burst at a time. Returns how many.
pub fn one_at_a_time(plan: Plan, commands: usize) -> Result<usize, String> {
    let mut random = Random::new(plan.seed);
    let mut sides = [Side::new(Plan::alone(plan.seed)), Side::new(plan)];
    let mut grammar = Grammar::new(random.next_u64(), 2);
    let mut in_multi = [false; CONNECTIONS];
    let mut sent = 0;
    while sent < commands {
        for step in grammar.script() {
            match step {
                Step::Burst { connection, commands } | Step::Open { connection, commands } => {
                    let commands = admissible(commands, &mut in_multi[connection]);
                    sent += commands.len();
                    burst(&mut sides, connection, &commands)?;
                }
                Step::FullScan { options } if !in_multi[0] => {
                    let found = sides.each_mut().map(|side| side.scan(&options));
                    if found[0] != found[1] {
                        return Err(format!("a full SCAN finds {:?}, alone {:?}", found[1], found[0]));
                    }
                }
                _ => {}
            }
            if random.chance(10) {
                let key = random.pick(grammar.keys()).clone();
                let time = random.between(1, 3000).to_string().into_bytes();
                let command = Command::new(vec![b"PEXPIRE".to_vec(), key, time]);
                let connection = random.below(CONNECTIONS);
                burst(&mut sides, connection, &[command])?;
                let milliseconds = random.next_u64() % 2000;
                sides.iter_mut().for_each(|side| side.fleet.advance_unix(milliseconds));
            }
        }
    }
    let [mut alone, mut fleet] = sides;
    alone.fleet.end().map_err(|error| format!("alone: {error}"))?;
    fleet.fleet.end()?;
    Ok(sent)
}

/// What both sides can be asked, knowing how replies and commands belong together.
fn admissible(mut commands: Vec<Command>, in_multi: &mut bool) -> Vec<Command> {
    commands.retain(|command| {
        let name = command.name();
        if !is_about_data(command) || command.starts_with(&["CLIENT", "REPLY"]) || name == "QUIT" {
            return false;
        }
        // Inside EXEC's reply they could not be told.
        if *in_multi && (name == "RANDOMKEY" || name == "SCAN") {
            return false;
        }
        match &*name {
            "MULTI" if command.args.len() == 1 => *in_multi = true,
            "EXEC" | "DISCARD" | "RESET" if command.args.len() == 1 => *in_multi = false,
            _ => {}
        }
        true
    });
    commands
}

/// One of the two that are compared.
struct Side {
    fleet: Fleet,
    wires: Vec<Wire>,
}

impl Side {
    fn new(plan: Plan) -> Side {
        let mut fleet = Fleet::new(plan);
        let wires = (0..CONNECTIONS)
            .map(|_| {
                let shard = fleet.random().below(plan.shards);
                fleet.connect(shard)
            })
            .collect();
        Side { fleet, wires }
    }

    fn ask(&mut self, connection: usize, bytes: &[u8]) -> Result<Vec<u8>, String> {
        self.fleet.send(self.wires[connection], bytes);
        self.fleet.run_until(Fleet::is_settled)?;
        Ok(self.fleet.take_received(self.wires[connection]))
    }

    /// The keys of a full SCAN, sorted.
    fn scan(&mut self, options: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        let mut keys = Vec::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut args = vec![b"SCAN".to_vec(), cursor];
            args.extend_from_slice(options);
            let mut bytes = Vec::new();
            Command::new(args).encode(&mut bytes);
            let reply = self.ask(0, &bytes)?;
            let reply = Value::parse(&reply).map_err(|error| format!("{error:?} to SCAN"))?.0;
            let Some([next, found]) = reply.items() else { return Err(reply.show()) };
            let found = found.items().unwrap_or_default();
            keys.extend(found.iter().filter_map(Value::bytes).map(<[u8]>::to_vec));
            cursor = next.bytes().unwrap_or_default().to_vec();
            if cursor == b"0" {
                keys.sort();
                keys.dedup();
                return Ok(keys);
            }
        }
    }
}

fn burst(sides: &mut [Side; 2], connection: usize, commands: &[Command]) -> Result<(), String> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut bytes));
    let [alone, fleet] = sides.each_mut().map(|side| side.ask(connection, &bytes));
    let (alone, fleet) = (without_client_ids(&alone?), without_client_ids(&fleet?));
    if alone == fleet {
        return Ok(());
    }
    let (wanted, found) = (values(&alone), values(&fleet));
    for (at, command) in commands.iter().enumerate() {
        let (wanted, found) = (wanted.get(at), found.get(at));
        let agree = match (wanted, found) {
            (Some(wanted), Some(found)) => agree(command, wanted, found),
            _ => false,
        };
        if !agree {
            let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::show);
            let story: Vec<String> = commands[at.saturating_sub(12)..=at].iter().map(Command::show).collect();
            return Err(format!(
                "on connection {connection}:\n    {}\n  alone:    {}\n  together: {}",
                story.join("\n    "),
                show(wanted),
                show(found)
            ));
        }
    }
    if wanted.len() == found.len() { Ok(()) } else { Err("there are more replies than commands".into()) }
}

fn values(mut bytes: &[u8]) -> Vec<Value> {
    let mut values = Vec::new();
    while let Ok((value, length)) = Value::parse(bytes) {
        values.push(value);
        bytes = &bytes[length..];
    }
    values
}

fn agree(command: &Command, wanted: &Value, found: &Value) -> bool {
    if wanted == found {
        return true;
    }
    match (&*command.name(), wanted.items(), found.items()) {
        ("RANDOMKEY", None, None) => wanted.bytes().is_some() == found.bytes().is_some(),
        ("SCAN", Some(wanted), Some(found)) => wanted.len() == 2 && found.len() == 2,
        ("KEYS" | "EXEC", Some(wanted), Some(found)) if wanted.len() == found.len() => {
            same_set(wanted, found)
                || wanted.iter().zip(found).all(|(wanted, found)| match (wanted.items(), found.items()) {
                    (Some(wanted), Some(found)) => same_set(wanted, found),
                    _ => wanted == found,
                })
        }
        _ => false,
    }
}

fn same_set(wanted: &[Value], found: &[Value]) -> bool {
    let sorted = |values: &[Value]| {
        let mut shown: Vec<String> = values.iter().map(Value::show).collect();
        shown.sort();
        shown
    };
    sorted(wanted) == sorted(found)
}

/// Clients at once, each in its room. Returns how many bytes of replies were compared.
pub fn streams(plan: Plan, clients: usize, commands: usize) -> Result<usize, String> {
    let mut random = Random::new(plan.seed);
    let mut fleet = Fleet::new(plan);
    let mut alone = Fleet::new(Plan { output_buffer_max: plan.output_buffer_max, ..Plan::alone(plan.seed) });
    let mut expected = Vec::new();
    let mut leavers = Vec::new();
    for client in 0..clients {
        let bytes = Script::new(&mut random, client).bytes(1 + random.below(commands));
        let shard = random.below(plan.shards);
        if random.chance(20) {
            // This one goes away in the middle, and a new one may get its slot.
            let wire = fleet.connect(shard);
            fleet.send(wire, &bytes);
            leavers.push(wire);
            continue;
        }
        let wires = [alone.connect(0), fleet.connect(shard)];
        let ends = random.chance(30);
        for (side, wire) in [&mut alone, &mut fleet].into_iter().zip(wires) {
            side.send(wire, &bytes);
            if ends {
                side.finish(wire);
            }
        }
        alone.run_until(Fleet::is_settled).map_err(|error| format!("alone: {error}"))?;
        expected.push((wires[1], alone.take_received(wires[0]), alone.is_closed(wires[0])));
    }
    for _ in 0..random.below(2000) {
        fleet.step();
    }
    leavers.into_iter().for_each(|wire| fleet.reset(wire));
    fleet.run_until(Fleet::is_settled)?;
    let mut compared = 0;
    for (client, (wire, wanted, closes)) in expected.iter().enumerate() {
        let (wanted, found) = (without_client_ids(wanted), without_client_ids(fleet.received(*wire)));
        if wanted != found {
            let same = wanted.iter().zip(&found).take_while(|(wanted, found)| wanted == found).count();
            let show = |bytes: &[u8]| {
                let from = same.saturating_sub(60);
                show_bytes(&bytes[from..bytes.len().min(same + 200)], 400)
            };
            return Err(format!(
                "client {client}, {} replies in: byte {same} of {} is another\n  alone:    {}\n  together ({} bytes): {}",
                values(&found[..same]).len(),
                wanted.len(),
                show(&wanted),
                found.len(),
                show(&found)
            ));
        }
        if fleet.is_closed(*wire) != *closes {
            return Err(format!("client {client}: closed alone: {closes}, not so together"));
        }
        compared += wanted.len();
    }
    fleet.end()?;
    alone.end().map_err(|error| format!("alone: {error}"))?;
    Ok(compared)
}
