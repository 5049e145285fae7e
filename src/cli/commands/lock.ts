import type { Lease } from "../../base/session.js";
import { FleetCommand } from "../base-command.js";
import { checkCommand, lockFlags, lockOptions, splitCommand } from "../flags/lease.js";
import { sessionArg, wholeId } from "../flags/session.js";
import { renderLease, waysToEnd } from "../render/results.js";
import { LeaseSignals, runUnderLease } from "../run/under-lease.js";

interface LockResult {
  lease: (Lease & { token?: string }) | null;
  /** The exit code of COMMAND. */
  exitCode?: number;
}

export default class Lock extends FleetCommand {
  static override summary = "Take the lease on a session. With a command, hold it while the command runs.";
  static override description = [
    "With a command, lock works like flock: it renews the lease while the command runs and returns the command's exit code.",
    "If the lease is lost, lock ends the command (SIGTERM, SIGKILL after 5s) and exits with 5. The command",
    "finds COPILOTFLEET_LEASE_SESSION, COPILOTFLEET_LEASE_TOKEN and COPILOTFLEET_LEASE_FENCE in its environment. With",
    "--json, lock writes the command's output to standard error.\n\nWithout a command, lock prints the lease token. The",
    "lease ends with unlock, or after its TTL.",
  ].join(" ");
  static override usage = [
    "lock SESSION --user USER [--ttl 300s] [--wait 30s] [--steal --reason TEXT] [-- COMMAND…]",
    "lock SESSION --show [--user USER]",
  ];
  static override examples = [
    "<%= config.bin %> lock SESSION --user alice -- ./migrate.sh --all",
    'token="$(<%= config.bin %> lock SESSION --user alice --ttl 5m)"',
    "<%= config.bin %> lock SESSION --show",
  ];
  static override args = { session: sessionArg };
  static override flags = lockFlags;

  async run(): Promise<LockResult> {
    const { own, command } = splitCommand(this.argv);
    const { args, flags } = await this.parse(Lock, own);
    checkCommand(command, flags.show);
    const resolving = { user: flags.user, json: this.jsonEnabled() };
    if (flags.show) {
      return await this.withFleet(async (fleet) => {
        const session = await wholeId(fleet, args.session, { ...resolving, reads: true });
        const lease = await fleet.leases.get(session, { user: flags.user });
        this.log(renderLease(lease));
        return { lease };
      });
    }
    const options = lockOptions(flags);
    return await this.withFleet(async (fleet): Promise<LockResult> => {
      const session = await wholeId(fleet, args.session, resolving);
      if (command === undefined) {
        const signal = this.interruptSignal();
        using progress = this.progress("Waiting for the lease");
        const wait = { ...options, detached: true as const, signal, onWait: progress.report };
        const held = await fleet.leases.acquire(session, wait);
        await held.detach();
        this.log(held.token);
        if (process.stdout.isTTY === true && !resolving.json) process.stderr.write(`${waysToEnd(session)}\n`);
        return { lease: { ...held.lease, token: held.token } };
      }
      using signals = new LeaseSignals();
      using progress = this.progress("Waiting for the lease", signals.interrupt);
      const wait = { ...options, signal: signals.interrupt, onWait: progress.report };
      return await fleet.leases.hold(session, wait, async (held) => {
        progress.end();
        const exitCode = await runUnderLease(command, held, { signals, outputToStderr: this.jsonEnabled() });
        process.exitCode = exitCode;
        return { lease: held.lease, exitCode };
      });
    });
  }
}
