//! The plots, as SVG text that goes into the page as it is.

use super::table::{micros, quantile_name, thousands};
use super::{CurvePoint, RunReport};
use crate::stages::StagesReport;
use plotters::prelude::*;

const WIDTH: u32 = 760;
const HEIGHT: u32 = 340;
/// Room at the right for half of the last label of the axis below.
const LAST_LABEL: i32 = 36;
const GRID: RGBColor = RGBColor(225, 225, 228);
const TEXT: RGBColor = RGBColor(70, 70, 76);
/// Told apart by people who see red and green alike, and in grey print by their order of brightness.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 160),
    RGBColor(214, 96, 0),
    RGBColor(0, 140, 110),
    RGBColor(150, 60, 140),
    RGBColor(110, 110, 110),
    RGBColor(180, 150, 0),
];

type Plotted = Result<(), Box<dyn std::error::Error>>;

/// Draws into a string. A plot that cannot be drawn says so in its place: no report fails for a picture.
fn svg(
    height: u32,
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Plotted,
) -> String {
    let mut text = String::new();
    let result = {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area).and_then(|()| area.present().map_err(Into::into))
    };
    match result {
        Ok(()) => text,
        Err(error) => format!("<p>(no plot: {})</p>", super::html::escape(&error.to_string())),
    }
}

fn label() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&TEXT)
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// Latency in µs as a label of a logarithmic axis.
fn latency_label(us: &f64) -> String {
    match *us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

/// A named line and how it is drawn.
type Series = (String, ShapeStyle, Vec<(f64, f64)>);

/// What stands beside the axes of a plot of latencies.
struct Frame<'a> {
    x_labels: usize,
    x_label: &'a dyn Fn(&f64) -> String,
    below: String,
    /// Room over the highest value, as a factor.
    headroom: f64,
    /// Where the names stand; `None`: outside.
    legend: Option<SeriesLabelPosition>,
    dots: bool,
}

/// Percentiles below an axis that is 1/(1−q).
fn percentile_label(x: &f64) -> String {
    if *x <= 1.0 { "min".into() } else { quantile_name(1.0 - 1.0 / x) }
}

/// Latencies in µs, on a logarithmic axis, over whatever x is.
fn latency_plot<X>(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    x: impl plotters::coord::ranged1d::AsRangedCoord<CoordDescType = X, Value = f64>,
    series: &[Series],
    frame: Frame<'_>,
) -> Plotted
where
    X: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let all = || series.iter().flat_map(|(_, _, points)| points).map(|point| point.1);
    let low = all().fold(f64::INFINITY, f64::min).max(0.001) * 0.8;
    let high = all().fold(low * 2.0, f64::max) * frame.headroom;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(LAST_LABEL)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(x, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(label())
        .x_labels(frame.x_labels)
        .y_labels(8)
        .x_label_formatter(&frame.x_label)
        .y_label_formatter(&latency_label)
        .x_desc(frame.below)
        .draw()?;
    for (name, style, points) in series {
        let style = *style;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        if frame.dots {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, style.color.filled())))?;
        }
    }
    if let Some(position) = frame.legend {
        chart
            .configure_series_labels()
            .position(position)
            .background_style(WHITE.mix(0.85))
            .border_style(TRANSPARENT)
            .label_font(label())
            .draw()?;
    }
    Ok(())
}

/// Latency by percentile, each run a curve; the x axis is 1/(1−q), logarithmic, as in HDR plots.
pub fn latency_by_percentile(runs: &[&RunReport]) -> String {
    let curves: Vec<(String, &[CurvePoint])> = runs
        .iter()
        .map(|run| (format!("{} ({})", run.latency().0, run.loop_text()), &run.curve[..]))
        .collect();
    curves_by_percentile(&curves)
}

/// Named curves, whoever measured them.
pub fn curves_by_percentile(curves: &[(String, &[CurvePoint])]) -> String {
    let curves = curves.iter().filter(|(_, curve)| curve.len() > 1).enumerate();
    let curves: Vec<Series> = curves
        .map(|(index, (name, curve))| {
            let points = curve.iter().map(|point| (1.0 / (1.0 - point.quantile), point.ns as f64 / 1e3));
            (name.clone(), colour(index).stroke_width(2), points.collect())
        })
        .collect();
    if curves.is_empty() {
        return "<p>(too few samples for a curve)</p>".into();
    }
    let frame = Frame {
        x_labels: 7,
        x_label: &percentile_label,
        below: "percentile".into(),
        headroom: 1.25,
        legend: Some(SeriesLabelPosition::LowerRight),
        dots: false,
    };
    svg(HEIGHT, |area| latency_plot(area, (1.0..right_end(&curves, 10.0)).log_scale(), &curves, frame))
}

/// The highest x there is, and no less than that.
fn right_end(series: &[Series], least: f64) -> f64 {
    series.iter().flat_map(|(_, _, points)| points).map(|point| point.0).fold(least, f64::max)
}

/// p50, p99 and p99.9 of open-loop runs against the rate they were offered; what was not reached is left out.
pub fn latency_by_rate(runs: &[&RunReport]) -> String {
    let mut runs: Vec<&RunReport> =
        runs.iter().copied().filter(|run| !crate::sweep::is_overloaded(run)).collect();
    runs.retain(|run| run.response_time.is_some() && run.offered_per_s.is_some());
    runs.sort_by(|a, b| a.offered_per_s.unwrap_or(0.0).total_cmp(&b.offered_per_s.unwrap_or(0.0)));
    let quantiles = [0.5, 0.99, 0.999].into_iter().enumerate();
    let series: Vec<Series> = quantiles
        .map(|(index, quantile)| {
            let point =
                |run: &&RunReport| Some((run.offered_per_s?, run.latency().1.at(quantile)? as f64 / 1e3));
            let points = runs.iter().filter_map(point).collect();
            (quantile_name(quantile), colour(index).stroke_width(2), points)
        })
        .collect();
    if runs.len() < 3 || series.iter().map(|(_, _, points)| points.len()).sum::<usize>() < 3 {
        return "<p>(too few rates for a plot)</p>".into();
    }
    let frame = Frame {
        x_labels: 8,
        x_label: &|x| thousands(*x),
        below: "offered requests a second; response time (open loop)".into(),
        headroom: 1.25,
        legend: Some(SeriesLabelPosition::UpperLeft),
        dots: true,
    };
    svg(HEIGHT, |area| latency_plot(area, 0.0..right_end(&series, 0.0) * 1.03, &series, frame))
}

/// Latencies, in microseconds, of several reports against the rate.
pub fn rate_lines(lines: &[Line]) -> String {
    let series: Vec<Series> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| (line.name.clone(), colour(index).stroke_width(2), line.points.clone()))
        .collect();
    let frame = Frame {
        x_labels: 8,
        x_label: &|x| thousands(*x),
        below: "offered requests a second; response time (open loop)".into(),
        headroom: 1.25,
        legend: Some(SeriesLabelPosition::UpperLeft),
        dots: true,
    };
    svg(HEIGHT, |area| latency_plot(area, 0.0..right_end(&series, 0.0) * 1.03, &series, frame))
}

/// p50, p99 and maximum of every interval of one run.
pub fn latency_over_time(run: &RunReport) -> String {
    type Pick = fn(&crate::histogram::Interval) -> Option<u64>;
    let picks: [(&str, Pick); 3] = [
        ("p50", |interval| interval.p50_ns),
        ("p99", |interval| interval.p99_ns),
        ("max", |interval| interval.max_ns),
    ];
    let series: Vec<Series> = picks
        .iter()
        .enumerate()
        .map(|(index, (name, pick))| {
            let points = run.intervals.iter().filter_map(|interval| {
                let middle = interval.start_ms as f64 / 1e3 + interval.length_ms / 2e3;
                Some((middle, pick(interval)? as f64 / 1e3))
            });
            (name.to_string(), colour(index).stroke_width(2), points.collect())
        })
        .collect();
    if series.iter().map(|(_, _, points)| points.len()).sum::<usize>() < 2 {
        return "<p>(too few intervals for a plot)</p>".into();
    }
    let frame = Frame {
        x_labels: 8,
        x_label: &|x| format!("{x:.1} s"),
        below: format!("time; {} ({})", run.latency().0, run.loop_text()),
        headroom: 4.0,
        legend: Some(SeriesLabelPosition::UpperRight),
        dots: false,
    };
    svg(HEIGHT, |area| latency_plot(area, 0.0..run.window_s.max(0.1), &series, frame))
}

/// A named line of points.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// In order.
    pub points: Vec<(f64, f64)>,
}

/// Lines over steps: what is measured at so many workers stands above that number, whatever lies between two of them. The
/// axis at the left begins at zero, or is logarithmic where the values lie far apart; values below zero have no place.
pub fn lines(lines: &[Line], label_below: &str) -> String {
    let all = || lines.iter().flat_map(|line| &line.points).filter(|point| point.1 > 0.0);
    if all().count() == 0 {
        return "<p>(nothing to plot)</p>".into();
    }
    let mut steps: Vec<f64> = all().map(|point| point.0).collect();
    steps.sort_by(f64::total_cmp);
    steps.dedup();
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(0.0, f64::max);
    let last = steps.len() as f64 - 1.0;
    let left_to_right = -0.3..last + 0.3;
    svg(HEIGHT + 20 * lines.len() as u32, |area| {
        let (plot, names) = area.split_vertically(HEIGHT);
        let mut builder = ChartBuilder::on(&plot);
        builder.margin(10).margin_right(LAST_LABEL).x_label_area_size(38).y_label_area_size(84);
        if high / low > 8.0 {
            let chart = builder.build_cartesian_2d(left_to_right, (low * 0.7..high * 1.4).log_scale())?;
            draw_lines(chart, lines, &steps, label_below)?;
        } else {
            let chart = builder.build_cartesian_2d(left_to_right, 0.0..high * 1.1)?;
            draw_lines(chart, lines, &steps, label_below)?;
        }
        for (index, line) in lines.iter().enumerate() {
            // Names below: lines cross, and no corner is free of them.
            let y = 10 + 20 * index as i32;
            names.draw(&PathElement::new([(90, y), (112, y)], colour(index).stroke_width(2)))?;
            let pos = plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Left,
                plotters::style::text_anchor::VPos::Center,
            );
            names.draw(&Text::new(line.name.clone(), (120, y), label().pos(pos)))?;
        }
        Ok(())
    })
}

type Plane<'a, 'b, Y> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

fn draw_lines<Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>>(
    mut chart: Plane<'_, '_, Y>,
    lines: &[Line],
    steps: &[f64],
    label_below: &str,
) -> Plotted {
    let short = |value: &f64| match *value {
        value if value >= 10.0 => thousands(value),
        value => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_string(),
    };
    let named = |at: &f64| match (at.round() - at).abs() < 0.01 {
        true => steps.get(at.round() as usize).map_or(String::new(), short),
        false => String::new(),
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(label())
        .x_labels(steps.len() * 2)
        .y_labels(8)
        .x_label_formatter(&named)
        .y_label_formatter(&short)
        .x_desc(label_below)
        .draw()?;
    for (index, line) in lines.iter().enumerate() {
        let place = |x: f64| steps.iter().position(|step| *step == x).unwrap_or(0) as f64;
        let shown = line.points.iter().filter(|point| point.1 > 0.0);
        let points: Vec<(f64, f64)> = shown.map(|point| (place(point.0), point.1)).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour(index).stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour(index).filled())))?;
    }
    Ok(())
}

/// One horizontal bar.
pub struct Bar {
    /// Left of it.
    pub name: String,
    /// Its length; `None` draws none.
    pub value: Option<f64>,
    /// Right of it.
    pub text: String,
    /// Which colour.
    pub colour: usize,
}

/// Horizontal bars from zero: lengths can be compared by eye.
pub fn bars(bars: &[Bar]) -> String {
    const ROW: i32 = 28;
    const LEFT: i32 = 250;
    let longest = bars.iter().filter_map(|bar| bar.value).fold(0.0, f64::max);
    let height = (bars.len() as i32 * ROW + 16).max(60);
    let room = WIDTH as i32 - LEFT - 150;
    svg(height as u32, |area| {
        for (index, bar) in bars.iter().enumerate() {
            let top = 8 + index as i32 * ROW;
            let right_aligned = label().pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Center,
            ));
            let left_aligned = label().pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Left,
                plotters::style::text_anchor::VPos::Center,
            ));
            let middle = top + ROW / 2;
            area.draw(&Text::new(bar.name.clone(), (LEFT - 10, middle), right_aligned))?;
            let length = match bar.value {
                Some(value) if longest > 0.0 => (value / longest * f64::from(room)).round() as i32,
                _ => 0,
            };
            if length > 0 {
                let corners = [(LEFT, top + 5), (LEFT + length, top + ROW - 5)];
                area.draw(&Rectangle::new(corners, colour(bar.colour).filled()))?;
            }
            area.draw(&Text::new(bar.text.clone(), (LEFT + length + 8, middle), left_aligned))?;
        }
        Ok(())
    })
}

/// A horizontal bar with the interval of its value.
pub struct IntervalBar {
    /// Left of it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// The interval's ends.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Right of it.
    pub text: String,
    /// Which colour.
    pub colour: usize,
}

/// Bars from zero with their intervals; a line where `mark` is.
pub fn interval_bars(bars: &[IntervalBar], mark: Option<f64>) -> String {
    const ROW: i32 = 30;
    const LEFT: i32 = 250;
    let longest = bars.iter().map(|bar| bar.high.max(bar.value)).chain(mark).fold(0.0, f64::max);
    if longest <= 0.0 {
        return "<p>(nothing to plot)</p>".into();
    }
    let room = f64::from(WIDTH as i32 - LEFT - 190);
    let at = |value: f64| LEFT + (value.max(0.0) / longest * room).round() as i32;
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let height = bars.len() as i32 * ROW + 16;
    svg(height as u32, |area| {
        for (index, bar) in bars.iter().enumerate() {
            let top = 8 + index as i32 * ROW;
            let middle = top + ROW / 2;
            area.draw(&Text::new(
                bar.name.clone(),
                (LEFT - 10, middle),
                label().pos(Pos::new(HPos::Right, VPos::Center)),
            ))?;
            let corners = [(LEFT, top + 6), (at(bar.value), top + ROW - 6)];
            area.draw(&Rectangle::new(corners, colour(bar.colour).mix(0.75).filled()))?;
            let (low, high) = (at(bar.low), at(bar.high));
            area.draw(&PathElement::new([(low, middle), (high, middle)], BLACK.stroke_width(1)))?;
            for end in [low, high] {
                area.draw(&PathElement::new([(end, middle - 4), (end, middle + 4)], BLACK.stroke_width(1)))?;
            }
            let right = at(bar.value).max(high) + 8;
            area.draw(&Text::new(
                bar.text.clone(),
                (right, middle),
                label().pos(Pos::new(HPos::Left, VPos::Center)),
            ))?;
        }
        if let Some(mark) = mark {
            area.draw(&PathElement::new([(at(mark), 4), (at(mark), height - 4)], TEXT.stroke_width(1)))?;
        }
        Ok(())
    })
}

/// The colour of a stage: what is waited for stands out, what is done is quiet; what is outside is grey.
const STAGE_COLOURS: [RGBColor; store::stages::STAGE_COUNT] = [
    RGBColor(120, 170, 215),
    RGBColor(0, 90, 160),
    RGBColor(150, 60, 140),
    RGBColor(240, 170, 60),
    RGBColor(214, 96, 0),
    RGBColor(120, 200, 175),
    RGBColor(0, 140, 110),
];
const OUTSIDE: RGBColor = RGBColor(215, 215, 218);

/// Mean time by stage, one bar for each kind of batch, and what the client measured: lengths add up.
pub fn stage_bars(run: &RunReport, stages: &StagesReport) -> String {
    const ROW: i32 = 34;
    const LEFT: i32 = 130;
    const LEGEND: i32 = 22;
    let (name, latency) = run.latency();
    let mut rows: Vec<(String, Vec<(RGBColor, f64)>)> = Vec::new();
    for kind in &stages.kinds {
        let parts = kind.stages.iter().zip(STAGE_COLOURS).map(|(stage, colour)| (colour, stage.mean_ns));
        rows.push((kind.kind.into(), parts.collect()));
    }
    if let Some(mean) = latency.mean_ns {
        // Of all batches, whatever their kind: the stages weighted by how many there were.
        let samples: u64 = stages.kinds.iter().map(|kind| kind.samples).sum();
        let of = |at: usize| -> f64 {
            stages.kinds.iter().map(|kind| kind.stages[at].mean_ns * kind.samples as f64).sum::<f64>()
                / samples as f64
        };
        let mut parts: Vec<(RGBColor, f64)> =
            STAGE_COLOURS.iter().enumerate().map(|(at, colour)| (*colour, of(at))).collect();
        parts.push((OUTSIDE, stages.outside_ns(mean)));
        rows.push((name.into(), parts));
    }
    let sum = |parts: &[(RGBColor, f64)]| parts.iter().map(|part| part.1).sum::<f64>();
    let longest = rows.iter().map(|(_, parts)| sum(parts)).fold(0.0, f64::max);
    let room = f64::from(WIDTH as i32 - LEFT - 90);
    let at = |horizontal, vertical| plotters::style::text_anchor::Pos::new(horizontal, vertical);
    use plotters::style::text_anchor::{HPos, VPos};
    // Named are those that can be seen in some bar.
    let names = store::stages::STAGES.iter().map(|stage| stage.name).chain(["outside"]);
    let colours = STAGE_COLOURS.into_iter().chain([OUTSIDE]);
    let is_seen = |colour: RGBColor| {
        let wide =
            |part: &(RGBColor, f64)| part.0 == colour && longest > 0.0 && part.1 / longest * room >= 0.5;
        rows.iter().any(|(_, parts)| parts.iter().any(wide))
    };
    let legend: Vec<(&str, RGBColor)> = names.zip(colours).filter(|(_, colour)| is_seen(*colour)).collect();
    let height = rows.len() as i32 * ROW + LEGEND + 18;
    svg(height as u32, |area| {
        let mut x = LEFT;
        for (name, colour) in &legend {
            area.draw(&Rectangle::new([(x, 8), (x + 12, 20)], colour.filled()))?;
            area.draw(&Text::new(*name, (x + 17, 14), label().pos(at(HPos::Left, VPos::Center))))?;
            x += 32 + 8 * name.len() as i32;
        }
        for (index, (name, parts)) in rows.iter().enumerate() {
            let top = LEGEND + 8 + index as i32 * ROW;
            let middle = top + ROW / 2;
            area.draw(&Text::new(
                name.clone(),
                (LEFT - 10, middle),
                label().pos(at(HPos::Right, VPos::Center)),
            ))?;
            let mut passed = 0.0;
            let place = |ns: f64| LEFT + if longest > 0.0 { (ns / longest * room).round() as i32 } else { 0 };
            for (colour, ns) in parts {
                let (from, to) = (place(passed), place(passed + ns));
                passed += ns;
                if to > from {
                    area.draw(&Rectangle::new([(from, top + 6), (to, top + ROW - 6)], colour.filled()))?;
                }
            }
            let text = micros(Some(passed as u64));
            area.draw(&Text::new(
                text,
                (place(passed) + 8, middle),
                label().pos(at(HPos::Left, VPos::Center)),
            ))?;
        }
        Ok(())
    })
}

/// What the client measured by percentile, and beneath it the server's stages.
pub fn stages_by_percentile(run: &RunReport, stages: &StagesReport) -> String {
    let points = |curve: &[CurvePoint]| -> Vec<(f64, f64)> {
        let shown = curve.iter().filter(|point| point.ns > 0);
        shown.map(|point| (1.0 / (1.0 - point.quantile), point.ns as f64 / 1e3)).collect()
    };
    let mut curves: Vec<Series> = vec![(run.latency().0.into(), BLACK.stroke_width(2), points(&run.curve))];
    for (at, kind) in stages.kinds.iter().enumerate() {
        // Writes are drawn as thick as the client's curve, reads thin: what they share they share in colour.
        let width = if kind.kind == "write" { 2 } else { 1 };
        let total = RGBColor(110, 110, 110).stroke_width(width);
        curves.push((format!("{}: in the server", kind.kind), total, points(&kind.total.curve)));
        for (stage, colour) in kind.stages.iter().zip(STAGE_COLOURS) {
            curves.push((
                format!("{}: {}", kind.kind, stage.stage),
                colour.stroke_width(width),
                points(&stage.curve),
            ));
        }
        debug_assert!(at < 2, "there are reads and writes");
    }
    curves.retain(|(_, _, points)| points.len() > 1);
    if curves.is_empty() {
        return "<p>(too few samples for a curve)</p>".into();
    }
    let frame = Frame {
        x_labels: 7,
        x_label: &percentile_label,
        below: "percentile".into(),
        headroom: 1.25,
        legend: None,
        dots: false,
    };
    svg(HEIGHT + 60, |area| {
        // Room for the names at the right.
        let (plot, names) = area.split_horizontally(WIDTH as i32 - 170);
        latency_plot(&plot, (1.0..right_end(&curves, 10.0)).log_scale(), &curves, frame)?;
        for (index, (name, style, _)) in curves.iter().enumerate() {
            let y = 22 + index as i32 * 21;
            names.draw(&PathElement::new([(4, y), (22, y)], *style))?;
            let pos = plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Left,
                plotters::style::text_anchor::VPos::Center,
            );
            names.draw(&Text::new(name.clone(), (28, y), label().pos(pos)))?;
        }
        Ok(())
    })
}

/// CPU per request on both sides of every run.
pub fn cpu_bars(runs: &[&RunReport]) -> String {
    let mut list = Vec::new();
    for run in runs {
        for (side, value, share, colour) in [
            ("server", run.cpu.server_us_per_request, run.cpu.server_share, 0),
            ("generator", run.cpu.generator_us_per_request, run.cpu.generator_share, 4),
        ] {
            list.push(Bar {
                name: format!("{}: {side}", run.title),
                value,
                text: match value {
                    Some(value) => format!("{value:.2} µs ({})", super::table::percent(share)),
                    None => "not known".into(),
                },
                colour,
            });
        }
    }
    bars(&list)
}

#[cfg(test)]
mod tests {
    use super::super::tests::reported;
    use super::*;

    #[test]
    fn plots_are_whole_svg_elements_with_their_labels() {
        let open = reported("half", true, 100_000);
        let closed = reported("max", false, 100_000);
        let percentiles = latency_by_percentile(&[&closed, &open]);
        for expected in ["<svg", "</svg>", "p99", "closed loop", "open loop"] {
            assert!(percentiles.contains(expected), "{expected} in {percentiles}");
        }
        let time = latency_over_time(&open);
        assert!(time.contains("</svg>") && time.contains("max"), "{time}");
        let stages = open.stages.as_ref().expect("the server's figures");
        let bars = stage_bars(&open, stages);
        for expected in ["read", "write", "response time", "execute", "outside", "7.00 µs", "70 µs", "</svg>"]
        {
            assert!(bars.contains(expected), "{expected} in {bars}");
        }
        // The label at the very end of the axis has its half beside the plot.
        let mut ends_on_a_label = open.clone();
        ends_on_a_label.window_s = 0.7;
        let text = latency_over_time(&ends_on_a_label);
        let last = text.split("<text ").find(|part| part.contains("0.7 s")).expect("a label at the end");
        let x = last.split("x=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("its place");
        assert!(x.parse::<u32>().expect("a number") + 30 < WIDTH, "{last}");
        let curves = stages_by_percentile(&open, stages);
        assert!(curves.contains("read: in the server") && curves.contains("read: flush"), "{curves}");
        assert!(!curves.contains("write: flush"), "one write makes no curve: {curves}");
        let cpu = cpu_bars(&[&open]);
        assert!(cpu.contains("19.00 µs (95 %)") && cpu.contains("half: server"), "{cpu}");
    }

    #[test]
    fn nothing_to_plot_is_said() {
        let empty = reported("none", true, 0);
        assert!(latency_by_percentile(&[&empty]).contains("too few"));
        assert!(bars(&[]).contains("</svg>"));
    }
}
