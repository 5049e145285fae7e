import { Flags } from "@oclif/core";
import type { Check } from "../../fleet/doctor/checks.js";
import { examine } from "../../fleet/doctor/doctor.js";
import { FleetCommand } from "../base-command.js";
import { renderCheck, renderSummary } from "../render/results.js";

export default class Doctor extends FleetCommand {
  static override summary = "Check the installation, the state and the servers.";
  static override examples = [
    "<%= config.bin %> doctor",
    "<%= config.bin %> doctor --quick",
    "<%= config.bin %> doctor --fix",
  ];
  static override flags = {
    fix: Flags.boolean({ description: "repair what can be repaired without losing anything" }),
    "accept-weaker-sandbox": Flags.boolean({
      description: "let servers start in the sandbox that works now, even if it is weaker than at the last start",
    }),
    quick: Flags.boolean({ description: "skip checks that start a server or use the network, except for the store" }),
  };

  async run(): Promise<{ ok: boolean; checks: Check[] }> {
    const { flags } = await this.parse(Doctor);
    const { fix, quick, "accept-weaker-sandbox": acceptWeakerSandbox } = flags;
    const signal = this.interruptSignal({ cleansUp: true });
    using progress = this.progress("Checking");
    const source = { env: process.env, cwd: process.cwd(), ...this.configSource };
    const options = { ...source, fix, quick, acceptWeakerSandbox, signal };
    const { ok, checks, exit } = await examine({ ...options, onCheck: progress.report });
    for (const check of checks) this.log(renderCheck(check));
    this.log(`\n${renderSummary(checks)}`);
    process.exitCode = exit;
    return { ok, checks };
  }
}
