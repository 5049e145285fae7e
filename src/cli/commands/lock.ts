import { Flags } from "@oclif/core";
import { abortable } from "../../base/clock.js";
import type { Lease } from "../../base/session.js";
import type { Fleet } from "../../fleet/fleet.js";
import { ForegroundCommand } from "../../runtime/launch/foreground.js";
import {
  type HeldLease,
  LEASE_VARIABLES,
  type LockOptions,
  parseLeaseTtl,
  parseReason,
  parseWait,
} from "../../sessions/leases.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlagUnless, given, missingUser, textFlag, usage, withRules } from "../flags/flags.js";
import { sessionArg, wholeId } from "../flags/session.js";
import { Interrupted, onSignals } from "../prompt.js";
import { renderLease, waysToEnd } from "../render/results.js";

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
  static override flags = {
    user: actingUserFlagUnless(["show"]),
    ttl: textFlag(
      "ttl",
      "how long the lease lasts unless it is renewed (default: lock.ttl)",
      "DURATION",
      parseLeaseTtl,
    ),
    wait: textFlag("wait", "how long to wait for the lease; 0 tries once (default: 30s)", "DURATION", parseWait),
    show: Flags.boolean({
      description: "show who holds the lease without taking it",
      exclusive: ["ttl", "wait", "steal", "reason"],
    }),
    steal: Flags.boolean({
      description: "take the lease at once from its holder; needs --reason",
      dependsOn: ["reason"],
    }),
    reason: withRules(textFlag("reason", "why the lease is taken over; everybody can read it", "TEXT", parseReason), {
      dependsOn: ["steal"],
    }),
  };

  async run(): Promise<LockResult> {
    // oclif does not separate the words before `--` from those after it.
    const end = this.argv.indexOf("--");
    const command = end === -1 ? undefined : this.argv.slice(end + 1);
    const { args, flags } = await this.parse(Lock, end === -1 ? this.argv : this.argv.slice(0, end));
    const { user, ttl, wait, reason, show } = flags;
    if (command !== undefined && show)
      throw usage("--show and a COMMAND cannot be used together.", ["copilotfleet lock SESSION --show"]);
    if (command?.length === 0)
      throw usage("COMMAND is missing after --. Give a program that runs while you hold the lease.", [
        "copilotfleet lock SESSION --user USER -- COMMAND # runs a program with the lease, then releases it",
        "copilotfleet lock SESSION --user USER # takes the lease",
      ]);
    if (user === undefined && !show) throw missingUser("copilotfleet lock --help");
    return await this.withFleet(async (fleet): Promise<LockResult> => {
      const session = await wholeId(fleet, args.session, { user, json: this.jsonEnabled(), reads: show });
      if (show || user === undefined) {
        const lease = await fleet.leases.get(session, { user });
        this.log(renderLease(lease));
        return { lease };
      }
      const options = { user, ...given({ ttl, wait, steal: reason === undefined ? undefined : { reason } }) };
      return command === undefined
        ? await this.#take(fleet, session, options)
        : await this.#runWith(command, fleet, session, options);
    });
  }

  async #take(fleet: Fleet, session: string, options: LockOptions): Promise<LockResult> {
    const signal = this.interruptSignal();
    using progress = this.progress("Waiting for the lease");
    const wait = { ...options, detached: true as const, signal, onWait: progress.report };
    const held = await fleet.leases.acquire(session, wait);
    await held.detach();
    this.log(held.token);
    if (process.stdout.isTTY === true && !this.jsonEnabled()) process.stderr.write(`${waysToEnd(session)}\n`);
    return { lease: { ...held.lease, token: held.token } };
  }

  /** Until COMMAND runs, a signal ends the wait for the lease. From then on, COMMAND gets the signals. */
  async #runWith(command: readonly string[], fleet: Fleet, session: string, options: LockOptions): Promise<LockResult> {
    const interrupt = new AbortController();
    let receive = (name: NodeJS.Signals) => interrupt.abort(new Interrupted(name));
    using _ = onSignals(FORWARDED, (name) => receive(name));
    using progress = this.progress("Waiting for the lease", interrupt.signal);
    const wait = { ...options, signal: interrupt.signal, onWait: progress.report };
    return await fleet.leases.hold(session, wait, async (held) => {
      progress.end();
      interrupt.signal.throwIfAborted();
      const running = startUnderLease(command, held, this.jsonEnabled());
      receive = (name) => running.signal(name);
      try {
        const { exitCode, problem } = await abortable(running.ended, held.signal);
        if (problem !== null) process.stderr.write(`${problem}\n`);
        process.exitCode = exitCode;
        return { lease: held.lease, exitCode };
      } catch (error) {
        // The lease is lost. End the command and all processes that it started.
        await running.end(GRACE_MS);
        throw error;
      }
    });
  }
}

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
/** How long the command may take to end after SIGTERM when the lease is lost, in milliseconds. */
const GRACE_MS = 5_000;

/**
 * If this process is killed, the command keeps running, but the lease expires after its TTL. A resource that must be
 * protected even then has to check the fence (`COPILOTFLEET_LEASE_FENCE`).
 */
function startUnderLease(command: readonly string[], held: HeldLease, outputToStderr: boolean): ForegroundCommand {
  const { session, token, fence } = LEASE_VARIABLES;
  const lease = { [session]: held.lease.sessionId, [token]: held.token, [fence]: String(held.fence) };
  return new ForegroundCommand(command, { outputToStderr, env: { ...process.env, ...lease } });
}
