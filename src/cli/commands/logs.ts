import { Args, Flags } from "@oclif/core";
import { isFleetError } from "../../base/errors.js";
import { printable } from "../../base/values/text.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { LogEndOptions } from "../../hosts/options.js";
import type { LogEnd } from "../../serve/logs.js";
import { referenceOf } from "../../servers/server.js";
import { FleetCommand } from "../base-command.js";
import { given, integerFlag, momentFlag, userFilter } from "../flags/flags.js";
import { checkSelection } from "../flags/select-servers.js";
import { linesOf, renderLogLine } from "../render/results.js";

/** The log of one server. */
export interface ServerLog {
  server: string;
  log: string;
  lines: string[];
}

/** With `--all`: the logs of all servers. */
export interface ServerLogs {
  logs: ServerLog[];
}

const MOST_LINES = 1_000_000;
const LINES = "how many last lines to print first (default: 100, or with --since all)";

export default class Logs extends FleetCommand {
  static override summary = "Show the log of a server, or of all servers.";
  static override description =
    "The log has the output of the runtime, and a line with its time for each launch and each end of the server. The " +
    "runtime prints no times.";
  static override examples = [
    "<%= config.bin %> logs alice-2bd806c97f0e -n 20",
    "<%= config.bin %> logs --user alice -f",
    "<%= config.bin %> logs --all --since 10m",
  ];
  static override args = {
    server: Args.string({
      description: "id of the server or of its user, or a unique prefix of the server's id",
      ignoreStdin: true,
    }),
  };
  static override flags = {
    user: userFilter("show the log of this user's server"),
    all: Flags.boolean({ description: "show the logs of all servers, each line with the id of its server" }),
    follow: Flags.boolean({ char: "f", description: "keep printing new lines until interrupted" }),
    lines: integerFlag("lines", LINES, [0, MOST_LINES], { char: "n", aliases: ["tail"] }),
    since: momentFlag("since", "print only lines that may have been written since then: 10m, or a time in ISO 8601"),
    timestamps: Flags.boolean({ char: "t", description: "begin each line with its time, or with - if it has none" }),
    previous: Flags.boolean({ char: "p", description: "show the launch before the last one", exclusive: ["follow"] }),
  };

  async run(): Promise<ServerLog | ServerLogs> {
    const { args, flags } = await this.parse(Logs);
    const { user, all, previous, timestamps, since, lines = since === undefined ? 100 : MOST_LINES } = flags;
    checkSelection(args.server === undefined ? [] : [args.server], { user, all });
    return await this.withFleet(async (fleet) => {
      using progress = this.progress("Reading the log");
      const references = await logReferences(fleet, { server: args.server, user, all });
      // Start to handle signals before printing the first line, because a user may interrupt from then on.
      const signal = flags.follow && !this.jsonEnabled() ? this.interruptSignal() : undefined;
      const width = Math.max(0, ...references.map((reference) => reference.length));
      const render = (name: string, line: string) =>
        renderLogLine(line, { timestamps, prefix: all ? { name, width } : undefined });
      const reader = new LogReader(fleet, all);
      const ends = await reader.ends(references, { lines, previous, ...given({ since }) });
      progress.end();
      for (const { reference, lines } of ends) for (const line of lines) this.log(render(reference, line));
      const print = (name: string, line: string) => void process.stdout.write(`${render(name, line)}\n`);
      if (signal !== undefined) await reader.follow(ends, signal, ({ reference }, line) => print(reference, line));
      const logs = ends.map(({ server, log, lines }) => ({ server, log, lines }));
      return all ? { logs } : (logs[0] as ServerLog);
    });
  }
}

/** Returns references of the servers whose logs to show. With `all`, leaves out servers on unreachable hosts. */
async function logReferences(
  fleet: Fleet,
  { server, user, all }: { server: string | undefined; user: string | undefined; all: boolean },
): Promise<string[]> {
  if (user !== undefined) return [referenceOf(await fleet.servers.ofUser(user))];
  if (!all) return [server ?? ""];
  return (await fleet.servers.list()).filter(({ away }) => !away).map(referenceOf);
}

/** The end of a log, and the reference by which the command found its server. */
interface ReadLog extends LogEnd {
  reference: string;
}

/** Reads and follows the logs of servers. With `all`, a log that cannot be read does not affect the other logs. */
class LogReader {
  readonly #fleet: Fleet;
  readonly #all: boolean;
  readonly #warned = new Set<string>();
  #failure: unknown;

  constructor(fleet: Fleet, all: boolean) {
    this.#fleet = fleet;
    this.#all = all;
  }

  /** Reads the ends of the logs. With `all`, leaves out logs that fail. @throws the first failure if all logs fail */
  async ends(references: readonly string[], options: LogEndOptions): Promise<ReadLog[]> {
    const found = await Promise.all(
      references.map(async (reference) => {
        const read = async () => await this.#fleet.servers.logEnd(reference, options);
        const end = await this.#attempt(reference, read);
        return end === null ? [] : [{ ...end, reference }];
      }),
    );
    const ends = found.flat();
    if (ends.length === 0) this.#throwFailure();
    return ends;
  }

  /** Prints each line that is added to the logs. @throws the signal's reason; if all logs ended, the first failure */
  async follow(ends: readonly ReadLog[], signal: AbortSignal, print: (log: ReadLog, line: string) => void) {
    const follow = async (log: ReadLog) => {
      const added = this.#fleet.servers.followLog(log.reference, { at: log.at, signal });
      for await (const line of linesOf(added)) print(log, line);
    };
    await Promise.all(ends.map(async (log) => await this.#attempt(log.reference, async () => await follow(log))));
    signal.throwIfAborted();
    this.#throwFailure();
  }

  /** Runs `read`. With `all`, turns a FleetError into null and a warning. Warns once about each unreachable host. */
  async #attempt<T>(reference: string, read: () => Promise<T>): Promise<T | null> {
    try {
      return await read();
    } catch (error) {
      if (!this.#all || !isFleetError(error)) throw error;
      this.#failure ??= error;
      const { code, message } = error;
      const isHost = code === "FLEET_HOST_AWAY";
      const one = `The log of ${reference} is left out: ${message}`;
      this.#warn(isHost ? `${message} The logs of its servers are left out.` : one);
      return null;
    }
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  #warn(warning: string): void {
    if (this.#warned.has(warning)) return;
    this.#warned.add(warning);
    process.stderr.write(`Warning: ${printable(warning)}\n`);
  }
}
