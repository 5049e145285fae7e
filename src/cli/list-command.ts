import { pause } from "../base/clock.js";
import { printableJson } from "../base/values/text.js";
import type { Fleet } from "../fleet/fleet.js";
import { FleetCommand } from "./base-command.js";
import { type ListFlags, usage } from "./flags/flags.js";
import { arrange, type Format, type List, renderList } from "./render/table.js";

/** The current content of a list. */
export interface Listing<Row, Result> {
  rows: readonly Row[];
  /** Makes the `--json` output from the rows after `--sort` and `--limit`. */
  resultOf: (rows: Row[]) => Result;
  /** The text to print in place of a table without rows. */
  none: string;
  /** The names of columns that a table does not need. */
  without?: readonly string[];
  /** A warning for people, on standard error or above a live view. */
  notice?: string | null;
  /** Lines before a table. */
  above?: readonly string[];
  /** Makes lines that follow a table. */
  below?: (rows: readonly Row[]) => readonly string[];
}

/** A listing after `--sort` and `--limit`, and the format to print it in. */
interface Shown<Row, Result> extends Listing<Row, Result> {
  list: List<Row>;
  result: Result;
  format: Format | "id";
  headless: boolean;
}

/** The base of the commands that print a list and take the flags of `listFlags`. */
export abstract class ListCommand extends FleetCommand {
  /** Reads the list and prints it; with `--watch`, again and again. Resolves with the `--json` output. */
  protected async printList<Row, Result>(
    list: List<Row>,
    flags: ListFlags,
    read: (fleet: Fleet) => Promise<Listing<Row, Result>>,
  ): Promise<Result> {
    const format = this.#formatOf(flags);
    return await this.withFleet(async (fleet) => {
      const look = async (): Promise<Shown<Row, Result>> => {
        const listing = await read(fleet);
        const rows = arrange(list, listing.rows, flags);
        return { ...listing, list, rows, result: listing.resultOf(rows), format, headless: flags["no-headers"] };
      };
      if (flags.watch) return await this.#watch(fleet, look, format);
      const shown = await this.#first(look);
      if (format !== "json") await print(shown);
      return shown.result;
    });
  }

  async #first<Result>(look: () => Promise<Result>): Promise<Result> {
    using _ = this.progress("Reading the list");
    return await look();
  }

  #formatOf({ output, quiet, watch }: ListFlags): Format | "id" {
    if (watch && output === "csv")
      throw usage("--watch and --output csv cannot be used together, because CSV can contain only one list.", [
        "Leave out --watch or --output csv.",
      ]);
    if (this.jsonEnabled()) return "json";
    return quiet ? "id" : (output ?? "table");
  }

  async #watch<Row, Result>(fleet: Fleet, look: () => Promise<Shown<Row, Result>>, format: string): Promise<Result> {
    // Import the live view only here, so that a list without `--watch` starts faster.
    const { REFRESH_MS, showLive } = await import("./run/screen.js");
    const signal = this.interruptSignal();
    let shown = await this.#first(look);
    if (isTable(format) && process.stdout.isTTY === true && process.stdin.isTTY === true) {
      const view = async () => {
        shown = await look();
        const above = shown.notice == null ? [] : [shown.notice, ""];
        const below = fleet.takeWarnings().map((warning) => `Warning: ${warning}`);
        const [heading = "", ...lines] = (await textOf(shown)).trimEnd().split("\n");
        return { above, heading, lines, below: ["", ...below] };
      };
      await showLive(view, REFRESH_MS, signal);
      signal.throwIfAborted();
      return shown.result;
    }
    const between = { json: "", yaml: "---\n" }[format] ?? "\n";
    for (let before = ""; ; before = between) {
      await print(shown, before);
      await pause(REFRESH_MS, signal);
      shown = await look();
    }
  }
}

function isTable(format: string): boolean {
  return format === "table" || format === "wide";
}

/** Prints the list and waits until it is written, so that lists do not pile up in memory if their reader is slow. */
async function print<Row, Result>(shown: Shown<Row, Result>, before = ""): Promise<void> {
  if (shown.notice != null && shown.format !== "json") process.stderr.write(`${shown.notice}\n`);
  const text = before + (await textOf(shown));
  await new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));
}

/** Renders the list, with a line break at its end. */
async function textOf<Row, Result>(shown: Shown<Row, Result>): Promise<string> {
  const { list, rows, result, format, headless, without = [], none, above = [], below = () => [] } = shown;
  if (format === "json") return `${printableJson(result)}\n`;
  if (format === "yaml") {
    const { stringify } = await import("yaml");
    // Quote a bare `yes` or `on`, because YAML 1.1 reads a boolean. Do not fold long lines.
    return stringify(result, { aliasDuplicateObjects: false, compat: "yaml-1.1", lineWidth: 0 });
  }
  if (format === "csv") return renderList(list, rows, { format, headless });
  const isEmpty = rows.length === 0;
  if (isEmpty && (headless || !isTable(format))) return "";
  const text = isEmpty ? none : renderList(list, rows, { format, headless, without });
  const isAlone = headless || format !== "table";
  return isAlone ? `${text}\n` : [...above, text, ...below(rows), ""].join("\n");
}
