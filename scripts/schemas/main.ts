// Derives schemas/ from the source: the JSON Schema of each command's --json output and of the configuration, the
// commands with their flags, the description of the HTTP API, and the list of all promises. Also writes the page of all
// configuration keys, and the types of an API client for the console and the tests. With --check, it only compares.
// Run: npm run schemas
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Manifest, snapshot } from "./commands.js";
import { configPage, configSchema } from "./config.js";
import { promisesOf } from "./contract.js";
import { clientTypes, lint } from "./document.js";
import { breaksOf, httpPromises } from "./http-contract.js";
import { openApi } from "./openapi.js";
import { readOutputs } from "./source.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const FOLDER = "schemas";
const CONTRACT = "schemas/contract.txt";
const PAGE = "docs/configuration-keys.md";
const CLIENT = "schemas/openapi.ts";
/** The version in the paths of the HTTP API. It does not change with releases. */
const API_VERSION = "1";
const LINE = 100;
const HEADING = `# Scripts rely on every line. "npm run schemas" adds lines. Remove a line only to break what it promises on purpose.`;

/** Returns the promises, the text of each file by its path below the root, and the linter's findings. */
async function generate(): Promise<{ promises: string[]; files: Map<string, string>; findings: string[] }> {
  const commands = snapshot(JSON.parse(readFileSync(join(ROOT, "oclif.manifest.json"), "utf8")) as Manifest);
  const { schemas, exitCodes } = readOutputs(ROOT, Object.keys(commands));
  const document = openApi(API_VERSION);
  const promises = [...promisesOf(commands, schemas, exitCodes), ...httpPromises(document)].sort();
  const config = configSchema();
  const files = new Map([
    [CONTRACT, `${[HEADING, ...promises].join("\n")}\n`],
    [PAGE, configPage(config)],
    ["schemas/commands.json", `${asText(commands)}\n`],
    ["schemas/config.json", `${asText(config)}\n`],
    ["schemas/openapi.json", `${asText(document)}\n`],
    [CLIENT, await clientTypes(document)],
    ...Object.entries(schemas).map(
      ([name, schema]) => [`schemas/output/${name.replaceAll(" ", "-")}.json`, `${asText(schema)}\n`] as const,
    ),
  ]);
  return { promises, files, findings: await lint(document) };
}

/** Writes each value that fits on a line on one line, so that a diff shows whole fields. */
function asText(value: unknown, indent = ""): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const [open, pad, close] = Array.isArray(value) ? ["[", "", "]"] : ["{", " ", "}"];
  const parts = Object.entries(value).map(
    ([key, part]) => `${Array.isArray(value) ? "" : `${JSON.stringify(key)}: `}${asText(part, `${indent}  `)}`,
  );
  const line = parts.length === 0 ? `${open}${close}` : `${open}${pad}${parts.join(", ")}${pad}${close}`;
  if (indent.length + line.length <= LINE && !line.includes("\n")) return line;
  return `${open}${parts.map((part) => `\n${indent}  ${part}`).join(",")}\n${indent}${close}`;
}

function committedFiles(): Map<string, string> {
  const names = readdirSync(join(ROOT, FOLDER), { recursive: true, encoding: "utf8" });
  const schemas = names.filter((name) => /\.(json|txt)$/.test(name)).map((name) => join(FOLDER, name));
  const paths = [...schemas, PAGE, CLIENT].filter((path) => existsSync(join(ROOT, path)));
  return new Map(paths.map((path) => [path, readFileSync(join(ROOT, path), "utf8")]));
}

function fail(problem: string, lines: readonly string[], advice: string): void {
  process.stderr.write(`${problem}\n${lines.map((line) => `  ${line}\n`).join("")}${advice}\n`);
  process.exitCode = 1;
}

const { promises, files, findings } = await generate();
const committed = committedFiles();
const lines = (committed.get(CONTRACT) ?? "").split("\n").filter((line) => line !== "" && !line.startsWith("#"));
const { lost, refused } = breaksOf(lines, promises);
const outdated = [...new Set([...files.keys(), ...committed.keys()])]
  .filter((name) => files.get(name) !== committed.get(name))
  .sort();
if (lost.length > 0) {
  fail(
    "Scripts rely on this, and the source no longer provides it:",
    lost,
    `Restore it. To break it on purpose, remove these lines from ${CONTRACT} and run: npm run schemas`,
  );
}
if (refused.length > 0) {
  fail(
    "Clients of the HTTP API could do without this so far:",
    refused,
    `Take it back. To break them on purpose, add these lines to ${CONTRACT} and run: npm run schemas`,
  );
}
if (findings.length > 0) fail("The linter objects to the description of the HTTP API:", findings, "Mend the routes.");
if (process.exitCode === 1) {
  // Do not write the files, so that the committed promises are not lost.
} else if (!process.argv.includes("--check")) {
  for (const name of outdated) {
    const file = join(ROOT, name);
    const text = files.get(name);
    mkdirSync(dirname(file), { recursive: true });
    if (text === undefined) rmSync(file);
    else writeFileSync(file, text);
  }
} else if (outdated.length > 0) {
  fail("These files differ from what the source gives:", outdated, "Run: npm run schemas. Then commit the result.");
}
