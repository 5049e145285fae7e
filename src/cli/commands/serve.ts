import { Flags } from "@oclif/core";
import { loadConfig } from "../../config/load/load.js";
import { FleetCommand } from "../base-command.js";
import { addressFlag, durationFlag, given } from "../flags/flags.js";
import { renderStopped } from "../render/results.js";
import { exitCodeOfServe, runServe, type Served } from "../run/serve.js";

const FLAG_NAMES = { "serve.http": "--http", "serve.listen": "--listen", "serve.metrics": "--metrics" };

export default class Serve extends FleetCommand {
  static override summary =
    "Supervise the servers: check health, restart, adopt, recycle, run gc, serve metrics and the front door.";
  static override description =
    "The front door listens on serve.listen (COPILOTFLEET_SERVE_LISTEN), by default 127.0.0.1:4300. The HTTP API listens on " +
    "serve.http (COPILOTFLEET_SERVE_HTTP), and is off by default. On SIGTERM, serve " +
    "admits no new turns, waits for turns in flight, and stops all servers. A second SIGTERM cuts the turns. Exits with 8 " +
    "when a turn had to be cut. Logs go to standard error.";
  static override examples = [
    "<%= config.bin %> serve",
    "<%= config.bin %> serve --http 127.0.0.1:4380",
    "<%= config.bin %> serve --leave-running",
  ];
  static override flags = {
    http: addressFlag("http", "address of the HTTP API (default: serve.http)", "127.0.0.1:4380"),
    listen: addressFlag("listen", "address of the front door (default: serve.listen)", "127.0.0.1:4300"),
    metrics: addressFlag("metrics", "address of metrics and health checks (default: serve.metrics)", "127.0.0.1:9464"),
    "drain-timeout": durationFlag("drain-timeout", "how long to wait for turns in flight (default: drain.timeout)"),
    "leave-running": Flags.boolean({ description: "on SIGTERM, leave the servers running for the next supervisor" }),
  };

  async run(): Promise<Served> {
    const { flags } = await this.parse(Serve);
    const { http, listen, metrics } = flags;
    const config = { serve: given({ http, listen, metrics }) };
    // The fleet checks the settings, too, but only the messages of this check name the flags.
    loadConfig({ ...this.configSource, env: process.env, cwd: process.cwd(), flags: config, flagNames: FLAG_NAMES });
    this.configSource.config = config;
    return await this.withFleet(async (fleet) => {
      const served = await runServe(fleet, {
        drainTimeoutMs: flags["drain-timeout"] ?? fleet.config.drain.timeoutMs,
        leaveRunning: flags["leave-running"] === true,
        ready: (line) => this.log(line),
      });
      this.log(served.leftRunning ? "The servers keep running without a supervisor." : renderStopped(served.stopped));
      process.exitCode = exitCodeOfServe(served);
      return served;
    });
  }
}
