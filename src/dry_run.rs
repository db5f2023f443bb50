//! `walden restore --dry-run`: the plan, what it takes on this machine and what would refuse it there, and with `--deep` whether everything that it
//! reads is as it should be. Writes nothing. What a restore needs and refuses is the `pitr` crate's to know.

use std::time::Instant;

use anyhow::{Context, Error, Result};
use pitr::gather::PlanMaterial;
use pitr::plan::RecoveryPlan;
use pitr::restore::{Preview, preview};
use pitr::verify::{Report, verify_plan};
use repository::ErrorClass;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::Globals;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::plan_report::{PlanReport, line};
use crate::restore_run::{RestoreRequest, check_port, find_server};
use crate::sources;
use crate::units::ByteSize;
use crate::verify_report::{Bar, looked_at, write_findings};

/// Everything that the restore would read was read.
#[derive(Debug, Serialize)]
struct Deep {
    healthy: bool,
    seconds: f64,
    #[serde(flatten)]
    report: Report,
}

/// Shows what a restore would do; ends with 5 if something that it needs is wrong, with 3 if this machine is in its way.
pub(crate) async fn run(
    request: &RestoreRequest<'_>,
    material: &PlanMaterial,
    shown: &PlanReport<'_>,
    deep: bool,
    globals: &Globals,
) -> Result<ExitCode> {
    let deep = match deep {
        true => Some(read_everything(material, shown.plan, globals).await?),
        false => None,
    };
    let is_damaged = deep.as_ref().is_some_and(|deep| !deep.healthy);
    let here = match preview(&request.job).await {
        Ok(here) => here,
        // What is wrong is among the findings.
        Err(error) if is_damaged && error.class() == ErrorClass::Corrupt => Preview::default(),
        Err(error) => return Err(error).context("see what the restore takes on this machine"),
    };
    let conflicts = conflicts(request, &here).await;
    let account = request.job.repository.account();
    let mut body = shown.to_json();
    body["repositories"] = sources::to_json(request.unanswered, &account);
    body["room"] = room(&here);
    body["resumes"] = json!(here.resumes);
    body["conflicts"] = json!(conflicts);
    if let Some(deep) = &deep {
        body["deep"] = serde_json::to_value(deep)?;
    }
    globals.output.print("walden.restore-plan", &body, || {
        let mut text = shown.to_text();
        write_here(&mut text, &here, &conflicts);
        for taken in sources::lines(&account) {
            text.push_str(&taken);
            text.push('\n');
        }
        if let Some(deep) = &deep {
            // Writing to a string cannot fail.
            deep.write(&mut text).expect("a string takes any text");
        }
        text
    })?;
    Ok(match () {
        () if is_damaged => ExitCode::Integrity,
        () if !conflicts.is_empty() => ExitCode::Warnings,
        () => ExitCode::Done,
    })
}

async fn read_everything(
    material: &PlanMaterial,
    plan: &RecoveryPlan,
    globals: &Globals,
) -> Result<Deep> {
    let begun = Instant::now();
    let bar = Bar::new(&globals.screen, "read");
    let read = verify_plan(material, plan, &|step| bar.step(step)).await;
    bar.finish();
    let report = read.context("read what the restore would read")?;
    Ok(Deep {
        healthy: report.findings.is_empty(),
        seconds: begun.elapsed().as_secs_f64(),
        report,
    })
}

/// What would refuse the restore on this machine, each with what to do about it.
async fn conflicts(request: &RestoreRequest<'_>, here: &Preview) -> Vec<String> {
    // What is said of an error stands in its text: it need not be this one.
    let refused = here
        .conflicts
        .iter()
        .map(|conflict| Error::msg(conflict.to_string()));
    let mut refused: Vec<Error> = refused.collect();
    if request.start {
        refused.extend(find_server(request).await.err());
        refused.extend(check_port(request).err());
    }
    let told = refused.iter().map(|error| {
        let failure = Failure::of(error);
        match &failure.hint {
            Some(hint) => format!("{}; {hint}", failure.line()),
            None => failure.line(),
        }
    });
    told.collect()
}

fn room(here: &Preview) -> Value {
    let folders = here.room.iter().map(|room| {
        json!({
            "path": room.path.display().to_string(),
            "needed_bytes": room.needed,
            "free_bytes": room.free,
        })
    });
    folders.collect()
}

fn write_here(text: &mut String, here: &Preview, conflicts: &[String]) {
    for room in &here.room {
        let (needed, free) = (ByteSize::new(room.needed), ByteSize::new(room.free));
        let path = room.path.display();
        line(
            text,
            "disk",
            &format!("{needed} in {path}, where {free} are free"),
        );
    }
    if here.resumes {
        let says = "an interrupted restore in the data directory, which this one continues";
        line(text, "found", says);
    }
    for conflict in conflicts {
        line(text, "in the way", conflict);
    }
}

impl Deep {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        line(text, "read", &looked_at(&self.report, self.seconds));
        for note in &self.report.notes {
            line(text, "note", note);
        }
        write_findings(text, &self.report)?;
        match self.report.findings.len() {
            0 => text.push_str("everything that this restore reads is as it should be\n"),
            1 => text.push_str("\n1 problem: this restore would fail\n"),
            count => text.push_str(&format!("\n{count} problems: this restore would fail\n")),
        }
        Ok(())
    }
}
