import { type SmokeResult, smoke } from "../../fleet/smoke.js";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { colour } from "../render/colour.js";

export default class Smoke extends FleetCommand {
  static override summary = "Run the whole workflow once, offline, with a built-in echo model. Needs no account.";
  static override description = "Exits with 0 only if each step did what it reports. Leaves nothing behind.";
  // The command uses its own configuration, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;

  async run(): Promise<SmokeResult> {
    await this.parse(Smoke);
    const signal = this.interruptSignal({ cleansUp: true });
    const result = await smoke({ env: process.env, signal }, ({ name, ok, ms, detail }) => {
      this.log(
        `${ok ? colour.green("ok  ") : colour.red("FAIL")} ${name.padEnd(10)} ${String(ms).padStart(5)} ms  ${detail}`,
      );
    });
    if (!result.ok) process.exitCode = 1;
    return result;
  }
}
