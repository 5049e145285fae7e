import { Flags, type Interfaces } from "@oclif/core";
import { quote } from "../../errors.js";
import { FORMATS, type List, nameOf, type SortKey } from "../render/lists/list.js";
import { choiceFlag, integerFlag, usage } from "./flags.js";

const MOST_ROWS = 1_000_000;

/** The flags of each command that prints a list. */
export function listFlags<Row>(list: List<Row>) {
  return inGroup("OUTPUT", {
    output: choiceFlag("format", "format of the list; wide has all columns", FORMATS, "o"),
    quiet: Flags.boolean({ char: "q", description: "print only ids" }),
    "no-headers": Flags.boolean({ description: "print no headings" }),
    sort: sortFlag(list.columns.map(nameOf)),
    watch: Flags.boolean({
      char: "w",
      description: "show the list until Ctrl-C, updated every 2 seconds; a pipe gets one list after the other",
    }),
    limit: integerFlag("limit", "print at most N rows", [1, MOST_ROWS], { example: 20 }),
  });
}

export type ListFlags = Interfaces.InferredFlags<ReturnType<typeof listFlags>>;

function sortFlag(columns: readonly string[]) {
  return Flags.custom<SortKey>({
    description: `column to sort by: ${columns.join(", ")}; with :desc in descending order`,
    helpValue: "COLUMN[:desc]",
    parse: async (value) => {
      const [column = "", order = "asc", ...rest] = value.split(":");
      const isOrder = rest.length === 0 && (order === "asc" || order === "desc");
      if (columns.includes(column) && isOrder) return { column, descending: order === "desc" };
      throw usage(
        `--sort ${quote(value)} is not a column. Allowed: ${columns.join(", ").replace(/, (?=[^,]*$)/, " or ")}, with :desc after it for descending order.`,
        [`For example, write --sort ${columns[0]} or --sort ${columns[0]}:desc.`],
      );
    },
  })();
}

function inGroup<F extends Interfaces.FlagInput>(helpGroup: string, flags: F): F {
  for (const flag of Object.values(flags)) flag.helpGroup = helpGroup;
  return flags;
}
