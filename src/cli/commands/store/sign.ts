import { Flags } from "@oclif/core";
import { countOf, printable } from "../../../base/values/text.js";
import { type SignResult, signRecords } from "../../../fleet/migrate.js";
import { FleetCommand } from "../../base-command.js";
import { yesFlag } from "../../flags/flags.js";
import { confirm, isAsked } from "../../prompt.js";

type SignatureFinding = SignResult["signed"][number];

export default class StoreSign extends FleetCommand {
  static override summary = "Sign the records in Redis that an earlier key of this host signed.";
  static override description = [
    "Records that no key of this host signed stay as they are. For a fleet whose key is lost, --all signs them, too. It",
    "lists them and asks first, because whoever may write to Redis may have added a record, and the fleet trusts a signed",
    "record.",
  ].join(" ");
  static override examples = ["<%= config.bin %> store sign", "<%= config.bin %> store sign --yes --json"];
  static override flags = {
    all: Flags.boolean({ description: "sign also records that no key of this host signed" }),
    yes: yesFlag,
  };

  async run(): Promise<SignResult> {
    const { flags } = await this.parse(StoreSign);
    const result = await signRecords({
      env: process.env,
      cwd: process.cwd(),
      ...this.configSource,
      all: flags.all === true,
      confirm: async (records) => {
        if (!isAsked({ json: this.jsonEnabled(), yes: flags.yes })) return;
        this.log(listOf(records));
        await confirm(`Sign ${countOf(records.length, "record")}?`);
      },
    });
    this.log(`Signed ${countOf(result.signed.length, "record")}.`);
    if (result.refused.length > 0) {
      this.log(`Not signed, because somebody else may have written them:\n${listOf(result.refused)}`);
    }
    return result;
  }
}

function listOf(records: readonly SignatureFinding[]): string {
  return records.map(({ kind, name, verdict }) => `  ${kind} ${printable(name)} (${verdict})`).join("\n");
}
