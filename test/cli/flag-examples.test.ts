import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command, Interfaces } from "@oclif/core";
import { describe, expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import { readUser } from "../../src/base/values/names.js";
import { readRedisUrl } from "../../src/base/values/network.js";
import { httpUrl, modelFault } from "../../src/config/rules.js";

type Option = Interfaces.OptionFlag<unknown> & { parse: (text: string, context: object, flag: object) => unknown };

const COMMANDS = fileURLToPath(new URL("../../src/cli/commands/", import.meta.url));
const FILES = readdirSync(COMMANDS, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
const OPTIONS = (await Promise.all(FILES.map(optionsIn))).flat();

/** The flags of the command in this file that take a value. */
async function optionsIn(file: string): Promise<{ command: string; name: string; definition: Option }[]> {
  const { default: command } = (await import(join(COMMANDS, file))) as { default: typeof Command };
  return Object.entries({ ...command.baseFlags, ...command.flags } as Record<string, Option>)
    .filter(([, { type }]) => type === "option")
    .map(([name, definition]) => ({ command: file.replace(".ts", ""), name, definition }));
}

/** Checks of values that commands make only after parsing the command line, by the `helpValue` of the flags. */
const RULES: Readonly<Record<string, (text: string) => boolean>> = {
  MODEL: (text) => modelFault(text) === null,
  STORE: (text) => readRedisUrl(text) !== null,
  USER: (text) => readUser(text) !== null,
  URL: (text) => httpUrl()["~run"]({ value: text }, {}).issues === undefined,
  VAR: (text) => /^[A-Z_]+$/.test(text),
};

async function accepts({ parse, options, helpValue = "" }: Option, text: string): Promise<boolean> {
  if (options !== undefined && !options.includes(text)) return false;
  await parse(text, {}, {});
  return RULES[String(helpValue)]?.(text) ?? true;
}

describe("the example for a flag", () => {
  it.each(OPTIONS)("$command --$name accepts the example in the error for a wrong value", async (option) => {
    const { definition } = option;
    try {
      await definition.parse("", {}, {});
    } catch (error) {
      if (!isFleetError(error)) throw error;
      const [advice = ""] = error.describe((flag) => flag).suggestions;
      const [, example] = / (?:such as|write) (?:--\S+ )?"?([^\s"]+?)"?(?:\.|, or.*)$/.exec(advice) ?? [];
      if (example !== undefined) expect(await accepts(definition, example), advice).toBe(true);
    }
  });
});
