import type { Command } from "@oclif/core";

/** `oclif.manifest.json` */
export interface Manifest {
  commands: Record<string, Command.Cached>;
}

/** The public part of a command's entry in the manifest. The texts for people are not part of the contract. */
export interface CommandSnapshot {
  aliases?: string[];
  hidden?: boolean;
  /** False if the command accepts more arguments than `args` lists. */
  strict: boolean;
  /** The arguments in the order in which a user types them. */
  args: { name: string; required?: boolean; options?: string[] }[];
  flags: Record<string, FlagSnapshot>;
}

export interface FlagSnapshot {
  type: "boolean" | "option";
  char?: string;
  aliases?: string[];
  hidden?: boolean;
  allowNo?: boolean;
  required?: boolean;
  multiple?: boolean;
  options?: string[];
  default?: unknown;
  dependsOn?: string[];
  exclusive?: string[];
  relationships?: unknown[];
}

const ARG_KEYS = ["name", "required", "options"];
const FLAG_KEYS = ["type", "char", "aliases", "hidden", "allowNo", "required", "multiple", "options", "default"];
const RELATION_KEYS = ["dependsOn", "exclusive", "relationships"];

/** All commands by the names that a user types. */
export function snapshot({ commands }: Manifest): Record<string, CommandSnapshot> {
  const entries = Object.values(commands).map((command) => [spoken(command.id), snapshotOf(command)] as const);
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function snapshotOf({ aliases, hiddenAliases, hidden, strict = true, args, flags }: Command.Cached): CommandSnapshot {
  const names = Object.keys(flags).sort();
  return {
    ...pick({ aliases: [...aliases, ...hiddenAliases].map(spoken), hidden }, ["aliases", "hidden"]),
    strict,
    args: Object.values(args).map((arg) => pick(arg, ARG_KEYS) as CommandSnapshot["args"][number]),
    flags: Object.fromEntries(
      names.map((name) => [name, pick(flags[name] ?? {}, [...FLAG_KEYS, ...RELATION_KEYS]) as unknown as FlagSnapshot]),
    ),
  };
}

/** The name of a command as a user types it. oclif separates the words of a command's id with colons. */
function spoken(id: string): string {
  return id.replaceAll(":", " ");
}

/** Returns the properties in `keys`, without those that are not set: undefined, false and empty lists. */
function pick(from: object, keys: readonly string[]): Record<string, unknown> {
  const isSet = (value: unknown) =>
    value !== undefined && value !== false && !(Array.isArray(value) && value.length === 0);
  return Object.fromEntries(Object.entries(from).filter(([key, value]) => keys.includes(key) && isSet(value)));
}
