import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { colour } from "../cli/render/colour.js";
import { renderSuggestion } from "../cli/render/suggestion.js";
import type { Check } from "../fleet/doctor/checks.js";
import { examine } from "../fleet/doctor/doctor.js";

export default class Doctor extends FleetCommand {
  static override summary = "Check the installation, the state and the servers.";
  static override examples = ["<%= config.bin %> doctor", "<%= config.bin %> doctor --fix"];
  static override flags = {
    fix: Flags.boolean({ description: "repair what can be repaired without losing anything" }),
  };

  async run(): Promise<{ ok: boolean; checks: Check[] }> {
    const { flags } = await this.parse(Doctor);
    using progress = this.progress("Checking");
    const { ok, checks, exit } = await examine({
      env: process.env,
      cwd: process.cwd(),
      ...this.configSource,
      fix: flags.fix,
      onCheck: progress.report,
    });
    for (const check of checks) this.log(render(check));
    process.exitCode = exit;
    return { ok, checks };
  }
}

const MARKS = {
  ok: colour.green("ok    "),
  warning: colour.yellow("WARN  "),
  failed: colour.red("FAIL  "),
  skipped: colour.yellow("SKIP  "),
} as const;

function render({ name, level, detail, fix, fixed }: Check): string {
  const mark = fixed ? colour.yellow("mended") : MARKS[level];
  return `${mark} ${name.padEnd(16)} ${detail}${fix === null ? "" : `\n${" ".repeat(24)}${renderSuggestion(fix)}`}`;
}
