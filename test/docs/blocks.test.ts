import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { text } from "node:stream/consumers";
import ts from "typescript";
import { describe, expect, it, onTestFinished } from "vitest";
import { parse } from "yaml";
import { loadConfig } from "../../src/config/load/load.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { processesWith, signalAll } from "../fixtures/processes.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { type Block, blocksOf, pages, ROOT } from "./blocks.js";

const BLOCKS = pages().flatMap(blocksOf);
const ofLanguage = (...languages: string[]) => BLOCKS.filter(({ language }) => languages.includes(language));
const titled = (blocks: readonly Block[]) => blocks.map((block) => [`${block.page}:${block.line}`, block] as const);

/** Scripts that replace programs when a page's commands run. Some of them check their arguments. */
const STAND_INS: Record<string, string> = {
  // Accepts a script that package.json has, and npm's own commands.
  npm: `const { scripts } = require("${ROOT}package.json");
    const [verb, name] = process.argv.slice(2);
    const known = verb === "run" ? name in scripts : ["ci", "install", "test", "pack", "publish"].includes(verb);
    process.exitCode = known ? 0 : 1;`,
  // Accepts files that exist. Runs openapi-typescript, because it is installed.
  npx: `const [program, ...rest] = process.argv.slice(2).filter((word) => word !== "--yes");
    if (program === "openapi-typescript") {
      const main = require.resolve("openapi-typescript/package.json", { paths: ["${ROOT}"] }).replace("package.json", "bin/cli.js");
      return require("child_process").execFileSync(process.execPath, [main, ...rest], { stdio: "ignore" });
    }
    const files = rest.filter((word) => /^(scripts|test|bench)\\//.test(word));
    process.exitCode = files.every((file) => require("fs").existsSync("${ROOT}" + file)) ? 0 : 1;`,
  docker: "",
  kubectl: "",
  sudo: "",
};

/** Replaces `node` for CONTRIBUTING.md, whose commands would otherwise rebuild `dist/` while other tests use it. */
const NODE_STAND_IN = `process.exitCode = require("fs").existsSync("${ROOT}" + process.argv[2]) ? 0 : 1;`;

/** A fleet whose PATH has the built command as `copilotfleet`, and the stand-ins. */
function shellFleet(standIns: Readonly<Record<string, string>>): TestFleet {
  const [door, metrics] = Array.from({ length: 2 }, () => `127.0.0.1:${testPorts(1).from}`);
  const fleet = new TestFleet({ COPILOTFLEET_SERVE_LISTEN: door, COPILOTFLEET_SERVE_METRICS: metrics });
  onTestFinished(async () => {
    await fleet.end();
    // A page may run further hosts. Their servers outlive a page that fails.
    signalAll(processesWith(`PATH=${fleet.env.PATH}`), "SIGKILL");
  });
  const bin = join(fleet.folder, "bin");
  mkdirSync(bin);
  for (const [name, source] of Object.entries(standIns)) {
    writeFileSync(join(bin, name), `#!${process.execPath}\n${source}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  symlinkSync(join(ROOT, "bin/run.js"), join(bin, "copilotfleet"));
  fleet.env.PATH = `${bin}${delimiter}${process.env.PATH}`;
  return fleet;
}

/** The commands of a block with the outputs that their comments promise: `command   # prints …: output`. */
function commandsOf(block: Block): { command: string; prints: string | undefined }[] {
  return block.text
    .replaceAll("\\\n", " ")
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))
    .map((line) => ({ command: line, prints: /#.*\bprints\b[^:]*: (.*)$/.exec(line)?.[1]?.trim() }));
}

/** Runs the commands in one shell, and then ends their background jobs. */
async function runInShell(fleet: TestFleet, cwd: string, commands: readonly { command: string }[]) {
  const marker = (index: number) => `<<< ${index} >>>`;
  const script = [
    "set -e",
    "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT",
    ...commands.flatMap(({ command }, index) => [command, `echo '${marker(index)}'`]),
  ].join("\n");
  const child = spawn("bash", ["-c", script], { cwd, env: fleet.env, stdio: ["ignore", "pipe", "pipe"] });
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
  let rest = stdout;
  const outputs = commands.map((_, index) => {
    const [output = "", after = ""] = rest.split(`${marker(index)}\n`, 2);
    rest = after;
    return output;
  });
  return { code: code as number | null, stderr, outputs };
}

describe("the index of the documents", () => {
  const inDocs = pages().filter((page) => /^docs\/[^/]+\.md$/.test(page) && page !== "docs/README.md");

  it.each(inDocs)("docs/README.md and the menu of the site link to %s", (page) => {
    const name = page.slice("docs/".length, -".md".length);
    expect(readFileSync(join(ROOT, "docs/README.md"), "utf8")).toContain(`](${name}.md)`);
    expect(readFileSync(join(ROOT, "docs/.vitepress/config.ts"), "utf8")).toContain(`"/${name}"`);
  });
});

describe("the code blocks of the documents", () => {
  const shellPages = [...new Set(ofLanguage("sh").map(({ page }) => page))];

  it.for(shellPages)(
    "the shell blocks of %s run in their order, and print what their comments promise",
    async (page, ctx) => {
      const problem = page === "docs/two-hosts.md" ? redisProblem() : undefined;
      if (problem !== undefined) return ctx.skip(problem);
      const fleet = shellFleet(page === "CONTRIBUTING.md" ? { ...STAND_INS, node: NODE_STAND_IN } : STAND_INS);
      // The pages outside docs/ are for people with a checkout, so their commands run in its root.
      const cwd = page.startsWith("docs/") ? fleet.folder : ROOT;
      const commands = blocksOf(page)
        .filter(({ language }) => language === "sh")
        .flatMap(commandsOf);
      const { code, stderr, outputs } = await runInShell(fleet, cwd, commands);
      expect({ code, stderr: code === 0 ? "" : stderr }, JSON.stringify(outputs)).toEqual({ code: 0, stderr: "" });
      commands.forEach(({ command, prints }, index) => {
        if (prints !== undefined) expect(outputs[index], command).toContain(prints);
      });
    },
  );

  it.each(titled(ofLanguage("json")))("the JSON block at %s is accepted as a user's configuration file", (_, block) => {
    const fleet = new TestFleet();
    onTestFinished(async () => await fleet.end());
    const file = join(fleet.folder, "config.json");
    writeFileSync(file, block.text, { mode: 0o600 });
    const { sources } = loadConfig({ configFile: file, env: {}, home: fleet.folder, cwd: fleet.folder });
    expect(sources).toEqual([file]);
  });

  it.skipIf(redisProblem() !== undefined)(
    "a real Redis accepts the settings and the commands in docs/redis.md",
    async () => {
      const fleet = new TestFleet();
      onTestFinished(async () => await fleet.end());
      const settings = join(fleet.folder, "redis.conf");
      writeFileSync(
        settings,
        ofLanguage("conf")
          .map(({ text: block }) => block)
          .join("\n"),
      );
      const redis = await RedisServer.start(["--include", settings]);
      onTestFinished(async () => await redis.end());
      expect(await redis.client.call("CONFIG", "GET", "maxmemory-policy")).toEqual(["maxmemory-policy", "noeviction"]);
      const commands = ofLanguage("redis").flatMap(({ text: block }) => block.trim().split("\n"));
      expect(commands.length).toBeGreaterThan(0);
      for (const command of commands) {
        const [name = "", ...words] = command.split(" ");
        expect(await redis.client.call(name, ...words), command).toBe("OK");
      }
    },
  );

  it.each(titled(ofLanguage("yaml")))("the YAML at %s can be parsed", (_, block) => {
    expect(parse(block.text)).toEqual(expect.any(Object));
  });

  it("the TypeScript blocks of all documents compile", () => {
    const folder = join(ROOT, "node_modules/.cache/blocks");
    mkdirSync(folder, { recursive: true });
    const files = ofLanguage("ts").map(({ page, line, text: source }) => {
      const file = join(folder, `${page.replaceAll(/\W/g, "-")}-${line}.mts`);
      // The export makes each block a module. Otherwise blocks without an import would share their variables.
      writeFileSync(file, `${source}\nexport {};\n`);
      return file;
    });
    // A command in docs/http.md generates this file.
    copyFileSync(join(ROOT, "schemas/openapi.ts"), join(folder, "openapi.ts"));
    const { options } = ts.parseJsonConfigFileContent(
      ts.readConfigFile(join(ROOT, "tsconfig.json"), (path) => readFileSync(path, "utf8")).config,
      ts.sys,
      ROOT,
    );
    const program = ts.createProgram(files, {
      ...options,
      paths: { copilotfleet: [join(ROOT, "dist/index.d.ts")] },
      incremental: false,
      noUnusedLocals: false,
    });
    const found = ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => [file?.fileName, messageText]);
    expect(files.length).toBeGreaterThan(2);
    expect(found).toEqual([]);
  });

  it("each code block names a language that these tests run, compile or parse", () => {
    // The `console` blocks are runbooks, whose commands test/commands/runbooks.test.ts runs.
    const languages = new Set(BLOCKS.map(({ language }) => language));
    expect([...languages].sort()).toEqual(["", "conf", "console", "json", "mermaid", "redis", "sh", "ts", "yaml"]);
    // A block without a language shows a tree of files.
    for (const { page, line, text: tree } of ofLanguage(""))
      expect(tree, `${page}:${line}`).toMatch(/^\S+\.[jt]s\b|\//m);
  });
});
