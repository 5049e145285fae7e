import { Flags } from "@oclif/core";
import { FIELD_FLAGS, type Field, SOURCES } from "../../fleet/init/answers.js";
import { choiceFlag, variableFlag } from "./flags.js";

const text = (description: string, helpValue: string) => Flags.string({ description, helpValue });

export const initFlags = {
  provider: choiceFlag("provider", "source of the models", SOURCES),
  "base-url": text("URL of the model service", "URL"),
  "api-key-env": variableFlag("variable that contains the key of the model service", "OPENAI_API_KEY"),
  "token-env": variableFlag("variable that contains the GitHub token (default: the login of gh)", "GITHUB_TOKEN"),
  model: text("model of sessions that name none", "MODEL"),
  isolation: choiceFlag("isolation", "whether users share servers (default: per-user)", ["per-user", "shared"]),
  yes: Flags.boolean({
    char: "y",
    description: "ask nothing: take the first source that is found, and the usual answers",
  }),
  force: Flags.boolean({ description: "replace an existing file" }),
  "user-config": Flags.boolean({ description: "write your own configuration file instead of the project's" }),
  "no-try": Flags.boolean({ description: "do not try a prompt before writing" }),
};

/** Returns the answers that the flags give to questions of `init`. */
export function fieldsIn(flags: Readonly<Record<string, unknown>>): Partial<Record<Field, string>> {
  const entries = Object.entries(FIELD_FLAGS).map(([field, flag]) => [field, flags[flag.slice("--".length)]]);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined)) as Partial<Record<Field, string>>;
}
