import { Args, Flags } from "@oclif/core";
import { printable, redact } from "../../base/values/text.js";
import { listTrusted, readProjectFile, revokeTrust, type TrustView, trustFile } from "../../fleet/trust.js";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { usage } from "../flags/flags.js";
import { renderTable } from "../render/table.js";

interface Trusted {
  /** The file that is now trusted; with `--list`, all trusted files; null if the file needs no trust. */
  trusted: TrustView | TrustView[] | null;
}

interface Revoked {
  revoked: string[];
}

export default class Trust extends FleetCommand {
  static override summary = "Allow a project's .copilotfleet.json to name programs, variables, addresses and stores.";
  static override description = [
    "Commands refuse such keys until you trust the file, because somebody else may have written it. The permission is",
    "bound to the path and the content of the file. It ends when either changes.",
  ].join(" ");
  static override examples = [
    "<%= config.bin %> trust",
    "<%= config.bin %> trust ~/work/app/.copilotfleet.json",
    "<%= config.bin %> trust --list",
    "<%= config.bin %> trust --revoke ~/work/app",
  ];
  // This command reads only the project file that the user wants to trust, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override args = {
    path: Args.string({
      description: "the file or its folder (default: the nearest file, searching upward from the working folder)",
      ignoreStdin: true,
    }),
  };
  static override flags = {
    list: Flags.boolean({ description: "show the files that you trust", exclusive: ["revoke"] }),
    revoke: Flags.string({ description: "stop trusting this file", helpValue: "PATH" }),
  };

  async run(): Promise<Trusted | Revoked> {
    const { args, flags } = await this.parse(Trust);
    const { list, revoke } = flags;
    if (args.path !== undefined && (list || revoke !== undefined))
      throw usage(`PATH and ${list ? "--list" : "--revoke"} cannot be used together.`, ["copilotfleet trust --list"]);
    const options = { env: process.env, cwd: process.cwd() };
    if (list) return this.#list(listTrusted(options));
    if (revoke !== undefined) return this.#revoke(await revokeTrust(revoke, options));
    const file = readProjectFile(args.path, options);
    const sets = Object.entries(file.sets);
    if (sets.length === 0) {
      this.log(`${printable(file.path)} does not set any key that needs your trust.`);
      return { trusted: null };
    }
    this.log(`${printable(file.path)} sets:`);
    for (const [key, value] of sets) this.log(`  ${key} = ${printable(redact(JSON.stringify(value)))}`);
    const trusted = await trustFile(file, options);
    this.log("You trust this file until its content changes.");
    return { trusted };
  }

  #list(trusted: TrustView[]): Trusted {
    const rows = trusted.map(({ path, state, trustedAt }) => [printable(path), state, trustedAt]);
    this.log(rows.length === 0 ? "You do not trust any project file." : renderTable(["FILE", "STATE", "SINCE"], rows));
    return { trusted };
  }

  #revoke(revoked: string[]): Revoked {
    this.log(revoked.length === 0 ? "The file was not trusted." : `${printable(revoked.join())} is no longer trusted.`);
    return { revoked };
  }
}
