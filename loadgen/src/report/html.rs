//! The report as one HTML page: no script, no font, no request leaves the file.

use super::table::{micros, number, percent, quantile_name, thousands};
use super::{Report, RunReport, plot};
use crate::histogram::Summary;
use crate::stages::{StageReport, StagesReport};
use crate::verdict::Verdict;
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
.manifest th { text-align: left; }
thead th { border-bottom: 1px solid #bbb; font-weight: 600; white-space: normal; vertical-align: bottom; }
.verdict { display: inline-block; padding: .1rem .6rem; border-radius: .3rem; font-weight: 700; color: #fff; }
.VALID { background: #00795c; } .SUSPECT { background: #a36200; } .INVALID { background: #b3261e; }
.loop { color: #555; font-weight: 400; }
.manifest td:first-child { color: #555; white-space: nowrap; } .manifest td { text-align: left; white-space: normal; word-break: break-word; }
svg { width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } svg, table { break-inside: avoid; }
  table { font-size: 10px; } th, td { padding-right: .4rem; } }
";

/// The percentiles of the tables; the curve and the JSON have more.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Text for HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    let title = escape(&report.title);
    let _ = writeln!(body, "<h1>{title}</h1>");
    let _ = writeln!(
        body,
        "<p>{} {} · {}</p>",
        verdict(report.verdict()),
        escape(&report.manifest.started_at),
        escape(report.manifest.cpu_model.as_deref().unwrap_or("unknown CPU"))
    );
    let runs: Vec<&RunReport> = report.runs.iter().collect();
    let _ = writeln!(body, "<h2>Summary</h2>{}", summary(&runs));
    let _ = writeln!(
        body,
        "<h2>Latency by percentile</h2><p>Open loop: response time, counted from the moment each request was \
         meant to be sent. Closed loop: service time, counted from the send; it cannot see a stall that keeps \
         requests from being sent.</p>{}",
        plot::latency_by_percentile(&runs)
    );
    if runs.iter().filter(|run| run.response_time.is_some()).count() >= 3 {
        let _ = writeln!(
            body,
            "<h2>Latency against offered rate</h2><p>Rates that were offered and not reached have no latency and are \
             left out: their backlog grew as long as the run lasted.</p>{}",
            plot::latency_by_rate(&runs)
        );
    }
    let _ = writeln!(
        body,
        "<h2>CPU per request</h2><p>On loopback the sender's system call does the receiver's TCP work, so each \
         side's figure contains some of the other's.</p>{}",
        plot::cpu_bars(&runs)
    );
    for run in &runs {
        let _ = writeln!(body, "{}", section(run));
    }
    let _ = writeln!(body, "<h2>Conditions</h2>{}", manifest(report));
    document(&report.title, &body)
}

/// A document around a body.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}</title><link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style>\
         </head><body>\n{body}\n</body></html>\n",
        escape(title)
    )
}

/// A table of text.
pub fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |kind: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{kind}>{}</{kind}>", escape(cell))).collect()
    };
    let mut text =
        format!("<table><thead><tr>{}</tr></thead><tbody>", cells("th", &mut columns.iter().copied()));
    for row in rows {
        let _ = write!(text, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
    }
    text + "</tbody></table>"
}

/// A list of text; nothing where there is none.
pub fn list<'a>(lines: impl Iterator<Item = &'a String>) -> String {
    let items: String = lines.map(|line| format!("<li>{}</li>", escape(line))).collect();
    if items.is_empty() { items } else { format!("<ul>{items}</ul>") }
}

/// A verdict as a badge.
fn verdict(verdict: Verdict) -> String {
    format!("<span class=\"verdict {verdict}\">{verdict}</span>")
}

fn summary(runs: &[&RunReport]) -> String {
    let mut text = String::from(
        "<table><thead><tr><th></th><th>throughput</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th>\
         <th>server CPU</th><th>saturated</th><th>verdict</th></tr></thead><tbody>",
    );
    for run in runs {
        let (name, latency) = run.latency();
        let _ = write!(
            text,
            "<tr><td>{}<br><span class=\"loop\">{}, {name}</span></td><td>{}/s</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{} µs</td><td>{}</td><td>{}</td></tr>",
            escape(&run.title),
            escape(&run.loop_text()),
            run.throughput_per_s.map_or("–".into(), thousands),
            micros(latency.at(0.5)),
            micros(latency.at(0.99)),
            micros(latency.at(0.999)),
            micros(latency.max_ns),
            number(run.cpu.server_us_per_request, 2),
            run.cpu.saturated,
            verdict(run.verdict)
        );
    }
    text + "</tbody></table>"
}

fn section(run: &RunReport) -> String {
    let mut text = format!(
        "<h2>{} <span class=\"loop\">{}</span></h2><p>{}",
        escape(&run.title),
        escape(&run.loop_text()),
        verdict(run.verdict)
    );
    let _ = write!(
        text,
        " {} connections to {} for {:.1} s after {:.1} s of warm-up; {} replies.</p>",
        run.connections,
        escape(&run.target),
        run.window_s,
        run.warmup_s,
        thousands(run.counts.completed as f64)
    );
    if !run.reasons.is_empty() || !run.notes.is_empty() {
        text.push_str("<ul>");
        for reason in &run.reasons {
            let _ = write!(
                text,
                "<li><b>{}</b>: {}; {}</li>",
                reason.grade,
                escape(&reason.text),
                escape(reason.advice)
            );
        }
        for note in &run.notes {
            let _ = write!(text, "<li>{}</li>", escape(note));
        }
        text.push_str("</ul>");
    }
    text.push_str("<table><thead><tr><th></th>");
    for quantile in QUANTILES {
        let _ = write!(text, "<th>{}</th>", quantile_name(quantile));
    }
    text.push_str("<th>max</th><th>mean</th><th>samples</th></tr></thead><tbody>");
    if let Some(response) = &run.response_time {
        row(&mut text, "response time (received − intended)", response);
    }
    row(&mut text, "service time (received − sent)", &run.service_time);
    if let Some(lateness) = &run.lateness {
        row(&mut text, "lateness (sent − intended)", lateness);
    }
    let _ = write!(
        text,
        "</tbody></table><p>CPU: server {} µs a request ({} of a core), generator {} µs ({}, and {} spinning). \
         Other programs: {}; hypervisor: {}. {} replies a receive of the generator.</p>",
        number(run.cpu.server_us_per_request, 2),
        percent(run.cpu.server_share),
        number(run.cpu.generator_us_per_request, 2),
        percent(run.cpu.generator_share),
        percent(run.cpu.generator_spun_share),
        percent(run.cpu.foreign_share),
        percent(run.cpu.steal_share),
        number(run.cpu.replies_per_receive, 1)
    );
    text.push_str("<h3>In the server</h3>");
    match (&run.stages, &run.stages_absent) {
        (Some(stages), _) => text.push_str(&server_stages(run, stages)),
        (None, why) => {
            let why = why.as_deref().unwrap_or("no figures by stage");
            let _ = write!(text, "<p>{}.</p>", escape(why));
        }
    }
    let _ = write!(text, "<h3>{} over time</h3>{}", capital(run.latency().0), plot::latency_over_time(run));
    text.push_str(&server(run));
    text
}

/// What the server says of itself: its version, and its settings, which are many, to be unfolded.
fn server(run: &RunReport) -> String {
    let version = run.server_version.as_deref().unwrap_or("not told");
    let mut text = format!("<h3>The server</h3><p>Version: {}.", escape(version));
    if run.server_configuration.is_empty() {
        return text + " Configuration: not told.</p>";
    }
    let _ = write!(
        text,
        "</p><details><summary>Configuration: {} settings</summary><table class=\"manifest\"><tbody>",
        run.server_configuration.len()
    );
    for (name, value) in &run.server_configuration {
        let _ = write!(text, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    }
    text + "</tbody></table></details>"
}

/// Where the server says its time went: means that add up as a bar, percentiles as curves, both as a table.
fn server_stages(run: &RunReport, stages: &StagesReport) -> String {
    let (name, latency) = run.latency();
    let counted =
        |kind: &crate::stages::KindReport| format!("{} {}", thousands(kind.samples as f64), kind.kind);
    let counted: Vec<String> = stages.kinds.iter().map(counted).collect();
    let sampling =
        stages.sampling.map_or(String::new(), |period| format!(", one in {}", thousands(period as f64)));
    let mut text = format!(
        "<p>Batches of requests that the server timed itself{sampling}: {} ({}, during {}; percentiles are at most {} \
         too high). Means add up; “outside” is what the client measured beyond them: the network, the \
         kernel's queues, and waiting until the server looks.</p>{}",
        counted.join(" and "),
        escape(stages.source),
        escape(stages.covers),
        percent(Some(stages.precision)),
        plot::stage_bars(run, stages)
    );
    text.push_str("<table><thead><tr><th></th><th>p50</th><th>p99</th><th>mean</th></tr></thead><tbody>");
    let row = |text: &mut String, name: &str, p50, p99, mean: Option<f64>| {
        let cells = [micros(p50), micros(p99), micros(mean.map(|mean| mean as u64))];
        let _ = write!(text, "<tr><td>{name}</td><td>{}</td></tr>", cells.join("</td><td>"));
    };
    for kind in &stages.kinds {
        let stage_row = |text: &mut String, name: &str, stage: &StageReport| {
            let name = format!("{}: {name}", kind.kind);
            row(text, &name, stage.p50_ns, stage.p99_ns, Some(stage.mean_ns));
        };
        // What takes no time at all is not there: a hop where there is one shard, a flush where there is no log.
        for stage in kind.stages.iter().filter(|stage| stage.mean_ns > 0.0) {
            stage_row(&mut text, stage.stage, stage);
        }
        stage_row(&mut text, "<b>in the server</b>", &kind.total);
    }
    row(&mut text, &format!("<b>{name}, all</b>"), latency.at(0.5), latency.at(0.99), latency.mean_ns);
    text.push_str("</tbody></table>");
    let _ = write!(
        text,
        "<h3>{} and stages by percentile</h3>{}",
        capital(name),
        plot::stages_by_percentile(run, stages)
    );
    text
}

fn capital(text: &str) -> String {
    text[..1].to_uppercase() + &text[1..]
}

fn row(text: &mut String, name: &str, summary: &Summary) {
    let _ = write!(text, "<tr><td>{name}</td>");
    for quantile in QUANTILES {
        let _ = write!(text, "<td>{}</td>", micros(summary.at(quantile)));
    }
    let _ = write!(
        text,
        "<td>{}</td><td>{}</td><td>{}</td></tr>",
        micros(summary.max_ns),
        micros(summary.mean_ns.map(|mean| mean as u64)),
        thousands(summary.samples as f64)
    );
}

fn manifest(report: &Report) -> String {
    let mut text = String::from("<table class=\"manifest\"><tbody>");
    text.push_str(&manifest_rows(&report.manifest));
    if let Some(run) = report.runs.first() {
        let workload = &run.workload;
        let asked = match &workload.commands[..] {
            [] => format!("SET:GET {}:{}", workload.sets, workload.gets),
            commands => {
                let with_count = |(command, count): &(String, u32)| format!("{count} × {command}");
                commands.iter().map(with_count).collect::<Vec<_>>().join(", ")
            }
        };
        let workload = format!(
            "{asked}, {} keys of {} bytes, values of {} bytes, {}, seed {}",
            thousands(workload.keys as f64),
            workload.key_sizes.map_or(workload.key_bytes.to_string(), |sizes| sizes.to_string()),
            workload.value_bytes,
            workload.key_distribution,
            workload.seed
        );
        let core = |core: Option<usize>| core.map_or("not pinned".into(), |core| format!("core {core}"));
        let pinning = format!("server {}, generator {}", core(run.server_core), core(run.generator_core));
        for (name, value) in [("workload", workload), ("pinning", pinning)] {
            let _ = write!(text, "<tr><td>{name}</td><td>{}</td></tr>", escape(&value));
        }
    }
    text + "</tbody></table>"
}

/// The page of a report: what it is about, why it is not whole, its parts, and the conditions.
pub fn whole_page(
    title: &str,
    lead: &str,
    incomplete: Option<&str>,
    parts: &str,
    manifest: &crate::system::Manifest,
) -> String {
    let incomplete =
        incomplete.map_or(String::new(), |why| format!("<p><b>Incomplete:</b> {}</p>", escape(why)));
    let body = format!(
        "<h1>{}</h1><p>{}</p>{incomplete}{parts}<h2>Conditions</h2><table class=\"manifest\"><tbody>{}</tbody></table>",
        escape(title),
        escape(lead),
        manifest_rows(manifest)
    );
    document(title, &body)
}

/// The machine and the build, as rows of a table.
pub fn manifest_rows(manifest: &crate::system::Manifest) -> String {
    let unknown = || "not said by this machine".to_string();
    let cores: Vec<String> = manifest.cores.iter().map(usize::to_string).collect();
    let rows = [
        ("command", manifest.command.join(" ")),
        ("started", manifest.started_at.clone()),
        ("loadgen", manifest.version.to_string()),
        ("commit", manifest.commit.clone().unwrap_or_else(unknown)),
        (
            "toolchain",
            format!("{}, {}, flags: {}", manifest.toolchain, manifest.profile, manifest.rust_flags),
        ),
        ("kernel", manifest.kernel.clone().unwrap_or_else(unknown)),
        ("CPU", manifest.cpu_model.clone().unwrap_or_else(unknown)),
        ("cores allowed", cores.join(", ")),
        ("virtual machine", if manifest.virtual_machine { "yes" } else { "no" }.into()),
        ("SMT active", manifest.smt.clone().unwrap_or_else(unknown)),
        ("governor", manifest.governor.clone().unwrap_or_else(unknown)),
        ("mitigations", manifest.mitigations.join("; ")),
        ("memory", manifest.memory_bytes.map_or_else(unknown, |bytes| format!("{} MiB", bytes >> 20))),
        ("load average before", number(manifest.load_average, 2)),
        ("clock source", manifest.clock_source.clone().unwrap_or_else(unknown)),
        ("TCP congestion control", manifest.tcp_congestion_control.clone().unwrap_or_else(unknown)),
    ];
    let row = |(name, value): &(&str, String)| format!("<tr><td>{name}</td><td>{}</td></tr>", escape(value));
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::reported;
    use super::*;
    use crate::system::Manifest;

    #[test]
    fn the_page_stands_alone() {
        let open = reported("a <b> & \"c\"", true, 100_000);
        let mut closed = reported("max", false, 100_000);
        closed.server_version = Some("redis_version 7 <&>".into());
        closed.server_configuration =
            [("maxmemory".into(), "<5>".into()), ("save".into(), String::new())].into();
        let page = page(&Report::new("demo", Manifest::read(), vec![closed, open]));
        assert!(page.contains("a &lt;b&gt; &amp; &quot;c&quot;") && !page.contains("a <b>"));
        assert!(!page.contains("<script") && !page.contains("src="));
        assert!(page.contains("Version: redis_version 7 &lt;&amp;&gt;.") && page.contains("2 settings"));
        assert!(page.contains("<tr><td>maxmemory</td><td>&lt;5&gt;</td></tr>"));
        // The other one has told nothing.
        assert!(page.contains("Version: not told. Configuration: not told."));
        // The only addresses are the SVG namespace and the targets measured.
        for (at, _) in page.match_indices("http") {
            assert!(page[at..].starts_with("http://www.w3.org/2000/svg"), "{}", &page[at..at + 40]);
        }
        // Two of both runs together, and of each the bars of its stages, their percentiles, and its course.
        assert_eq!(page.matches("<svg").count(), 8);
        assert!(page.contains("read: execute") && page.contains("one in 64"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
