import { Flags } from "@oclif/core";
import type { Overview } from "../../hosts/overview.js";
import { listFlags } from "../flags/flags.js";
import { ListCommand } from "../list-command.js";
import { BUSY_SERVERS, listingOf } from "../render/columns.js";

export default class Top extends ListCommand {
  /** `command-id.ts` adds --once to this alias. */
  static override aliases = ["status"];
  static override summary = "Show hosts, servers, sessions and users, live on a terminal.";
  static override description =
    "The last line of the screen shows the keys: they sort, filter, drain, restart, evict, and open logs and " +
    "transcripts. With --once, with an option for the output or in a pipe, it prints the current state once. The options for the " +
    "output are about the servers.";
  static override examples = [
    "<%= config.bin %> top",
    "<%= config.bin %> top --once",
    "<%= config.bin %> top --sort memory:desc",
    "<%= config.bin %> top --json",
  ];
  static override flags = {
    once: Flags.boolean({ description: "print the current state once", exclusive: ["watch"] }),
    ...listFlags(BUSY_SERVERS),
  };

  async run(): Promise<Overview> {
    const { flags } = await this.parse(Top);
    const { once, output, quiet, limit, sort } = flags;
    const isPrinted = once || output !== undefined || quiet || flags["no-headers"] || limit !== undefined;
    const isLive = process.stdout.isTTY === true && process.stdin.isTTY === true && !isPrinted && !this.jsonEnabled();
    if (!isLive) {
      return await this.printList(BUSY_SERVERS, flags, async (fleet) => listingOf(await fleet.hosts.overview()));
    }
    return await this.withFleet(async (fleet) => {
      const { showTop } = await import("../top.js");
      const signal = this.interruptSignal();
      const last = await showTop(fleet, signal, sort);
      signal.throwIfAborted();
      return last;
    });
  }
}
