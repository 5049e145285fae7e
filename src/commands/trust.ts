import { Args, Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { usage } from "../cli/flags.js";
import { renderTable } from "../cli/table.js";
import { printable, redact } from "../config/text.js";
import { listTrusted, readProjectFile, revokeTrust, type TrustView, trustFile } from "../trust.js";

type TrustResult = { trusted: TrustView | TrustView[] | null } | { revoked: string[] };

export default class Trust extends FleetCommand {
  static override summary = "Let a project's .copilotfleet.json name programs, variables, addresses and stores.";
  static override description = [
    "Such keys count only when you trust the file, as it may come with a repository that somebody else wrote. The trust is",
    "bound to the path and the content of the file: when either changes, it ends.",
  ].join(" ");
  static override examples = [
    "<%= config.bin %> trust",
    "<%= config.bin %> trust ~/work/app/.copilotfleet.json",
    "<%= config.bin %> trust --list",
    "<%= config.bin %> trust --revoke ~/work/app",
  ];
  // It reads no configuration but the file that it is about.
  static override baseFlags = {};
  static override args = {
    path: Args.string({
      description: "the file, or its folder; the nearest one upward from the working folder if left out",
      ignoreStdin: true,
    }),
  };
  static override flags = {
    list: Flags.boolean({ description: "show the files that you trust" }),
    revoke: Flags.string({ description: "trust this file no more", helpValue: "PATH" }),
  };

  async run(): Promise<TrustResult> {
    const { args, flags } = await this.parse(Trust);
    if ([args.path, flags.revoke, flags.list || undefined].filter((given) => given !== undefined).length > 1)
      throw usage("Give PATH, or --list, or --revoke PATH.", ["copilotfleet trust --help"]);
    const options = { env: process.env, cwd: process.cwd() };
    if (flags.list) return this.#list(listTrusted(options));
    if (flags.revoke !== undefined) return this.#revoke(revokeTrust(flags.revoke, options));
    const file = readProjectFile(args.path, options);
    const sets = Object.entries(file.sets);
    if (sets.length === 0) {
      this.log(`${printable(file.path)} sets nothing that needs your trust.`);
      return { trusted: null };
    }
    this.log(`${printable(file.path)} sets:`);
    for (const [key, value] of sets) this.log(`  ${key} = ${printable(redact(JSON.stringify(value)))}`);
    const trusted = trustFile(file, options);
    this.log("You trust this file until its content changes.");
    return { trusted };
  }

  #list(trusted: TrustView[]): TrustResult {
    const rows = trusted.map(({ path, state, trustedAt }) => [printable(path), state, trustedAt]);
    this.log(rows.length === 0 ? "You trust no project file." : renderTable(["FILE", "STATE", "SINCE"], rows));
    return { trusted };
  }

  #revoke(revoked: string[]): TrustResult {
    this.log(
      revoked.length === 0 ? "The file was not trusted." : `${printable(revoked.join())} is not trusted any more.`,
    );
    return { revoked };
  }
}
