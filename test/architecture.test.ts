import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { describe, expect, it } from "vitest";

/** Checks the rules of `docs/architecture.md`: imports point downward only, and few files import each dependency. */

const SRC = fileURLToPath(new URL("../src/", import.meta.url));

/** The rooms from top to bottom. A file in `src` itself is a room of its own. */
const ROOMS = [
  ..."main cli index fleet http operations hosts serve door sessions accounts identity servers".split(" "),
  ..."providers runtime sandbox store deploy config base".split(" "),
  // The pages for browsers share no code with the fleet.
  "console",
];

/** The folders of the front door from top to bottom. Files that are not in a folder come first. */
const DOOR = ["entry", "client", "turns", "routing", "state", "policy", "wire"];

interface Import {
  from: string;
  to: string;
  /** Erased by the compiler. */
  typeOnly: boolean;
  /** Loaded only when the code that needs it runs: `import()`. */
  lazy: boolean;
}

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter((name) => /\.tsx?$/.test(name));
const imports = files.flatMap(importsOf);

function importsOf(file: string): Import[] {
  const source = readFileSync(join(SRC, file), "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
  const found: Import[] = [];
  for (const [, keyword, clause = "", to = ""] of source.matchAll(
    /^(import|export)\s+(?:([^;"']*?)\s+from\s+)?"([^"]+)";/gm,
  )) {
    if (keyword === "export" && clause === "") continue;
    found.push({ from: file, to, typeOnly: isTypeOnly(clause), lazy: false });
  }
  for (const [, to = ""] of source.matchAll(/\bimport\(\s*"([^"]+)"\s*\)/g))
    found.push({ from: file, to, typeOnly: false, lazy: true });
  return found.map((entry) =>
    entry.to.startsWith(".") ? { ...entry, to: sourceOf(normalize(join(dirname(file), entry.to))) } : entry,
  );
}

/** The source of a module. */
function sourceOf(path: string): string {
  const source = path.replace(/\.js$/, ".ts");
  return files.includes(`${source}x`) ? `${source}x` : source;
}

function isTypeOnly(clause: string): boolean {
  if (clause.startsWith("type ")) return true;
  const names = /^\{([\s\S]*)\}$/.exec(clause)?.[1]?.split(",");
  return names?.every((name) => name.trim() === "" || name.trim().startsWith("type ")) === true;
}

const roomOf = (file: string) => file.split("/")[0]?.replace(/\.ts$/, "") ?? "";

function heightOf(file: string): number {
  const room = ROOMS.indexOf(roomOf(file));
  if (room === -1) throw new Error(`${file} is in no room: give it one here and in docs/architecture.md`);
  return room;
}

/** Files that import `to`. Imports of types count only with `types`, and `import()` counts only with `lazy`. */
function importers(to: RegExp, { types, lazy = true }: { types: boolean; lazy?: boolean }): string[] {
  const found = imports.filter((entry) => to.test(entry.to) && (types || !entry.typeOnly) && (lazy || !entry.lazy));
  return [...new Set(found.map(({ from }) => from))].sort();
}

/**
 * Finds the callbacks in a part's constructors: parameters that are functions, or that have a function as a property.
 * Looks into all interfaces and type aliases of the part except `exempt`. Methods of an interface do not count, because
 * they make it a collaborator.
 */
function callbacksInConstructors(part: string, exempt: string): string[] {
  const sources = files
    .filter((file) => file.startsWith(part))
    .map((file) => ts.createSourceFile(file, readFileSync(join(SRC, file), "utf8"), ts.ScriptTarget.Latest, true));
  const declared = new Map<string, ts.Node>();
  const constructors: ts.ConstructorDeclaration[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) declared.set(node.name.text, node);
    if (ts.isConstructorDeclaration(node)) constructors.push(node);
    node.forEachChild(visit);
  };
  for (const source of sources) visit(source);
  const hasFunction = (node: ts.Node, seen: ReadonlySet<string>): boolean => {
    if (ts.isFunctionTypeNode(node)) return true;
    if (ts.isMethodSignature(node)) return false;
    if (ts.isTypeReferenceNode(node) || ts.isExpressionWithTypeArguments(node)) {
      const name = ts.isTypeReferenceNode(node) ? node.typeName.getText() : node.expression.getText();
      const target = declared.get(name);
      if (target !== undefined && name !== exempt && !seen.has(name) && hasFunction(target, new Set([...seen, name])))
        return true;
    }
    return node.getChildren().some((child) => hasFunction(child, seen));
  };
  return constructors.flatMap(({ parameters, parent }) =>
    parameters
      .filter(({ type }) => type !== undefined && hasFunction(type, new Set()))
      .map(({ name }) => `${parent.getSourceFile().fileName}: ${parent.name?.getText()}(${name.getText()})`),
  );
}

describe("the source", () => {
  it("the architecture test reads the source files and finds their imports", () => {
    expect(files.length).toBeGreaterThan(60);
    expect(imports.length).toBeGreaterThan(200);
    expect(importers(/^node:/, { types: false }).length).toBeGreaterThan(20);
  });

  it("the map in docs/architecture.md has the rooms from top to bottom", () => {
    const map = readFileSync(join(SRC, "../docs/architecture.md"), "utf8").split("\n## The map\n")[1] ?? "";
    const rows = [...(map.split("\n\n| interface")[0] ?? "").matchAll(/^\| `(\w+)(?:\.ts|\/)` /gm)];
    expect(rows.map(([, room]) => room)).toEqual(ROOMS);
  });

  it("each source file imports only from lower rooms, or from its own", () => {
    const known = new Set(files);
    const upward = imports
      // The HTTP API takes the type of the methods that it serves from the fleet, and loads nothing of it.
      .filter(({ from, typeOnly }) => !(typeOnly && from === "http/fleet.ts"))
      .filter(({ from, to }) => known.has(to) && heightOf(from) > heightOf(to))
      .map(({ from, to }) => `${from} imports ${to}`);
    expect(upward).toEqual([]);
  });

  it("the folders of door/ import only from themselves and from lower layers, even types", () => {
    const floorOf = (file: string) => DOOR.indexOf(file.split("/")[1] ?? "");
    for (const file of files.filter((name) => /^door\/.*\//.test(name)))
      expect(floorOf(file), file).toBeGreaterThanOrEqual(0);
    const inside = imports.filter(({ from, to }) => from.startsWith("door/") && to.startsWith("door/"));
    expect(inside.length).toBeGreaterThan(100);
    const upward = inside.filter(({ from, to }) => floorOf(from) > floorOf(to));
    expect(upward.map(({ from, to }) => `${from} imports ${to}`)).toEqual([]);
  });

  it("the constructors of the front door take no callbacks, except the listeners for its events", () => {
    expect(callbacksInConstructors("door/", "DoorListeners")).toEqual([]);
    // This shows that the check works: the constructors of serve/ do take callbacks.
    expect(callbacksInConstructors("serve/", "nothing").length).toBeGreaterThan(0);
  });

  it("the source imports only files that exist", () => {
    const known = new Set(files);
    const lost = imports.filter(({ to }) => to.endsWith(".ts") && !known.has(to) && !existsSync(join(SRC, to)));
    expect(lost).toEqual([]);
  });

  it("only the command line imports oclif, colours and tables", () => {
    for (const file of importers(/^(@oclif\/core|chalk|cli-table3|fastest-levenshtein)/, { types: true })) {
      expect(file).toMatch(/^(main\.ts$|cli\/|config\/keys|base\/values\/names\.ts$)/);
    }
    expect(importers(/^(@oclif\/core|chalk|cli-table3)/, { types: true }).length).toBeGreaterThan(5);
  });

  it("only one file loads the Copilot SDK, and only a few parts import its types", () => {
    expect(importers(/^@github\/copilot-sdk/, { types: false })).toEqual(["runtime/client/connect.ts"]);
    for (const file of importers(/^@github\/copilot-sdk/, { types: true })) {
      expect(file).toMatch(
        /^(providers\/|sessions\/|hosts\/|servers\/clients\.ts$|runtime\/client\/|fleet\/|cli\/|index\.ts$)/,
      );
    }
  });

  it("no other source imports the pages in console/, and the pages import no other source", () => {
    const inside = imports.filter(({ from }) => from.startsWith("console/"));
    expect(inside.length).toBeGreaterThan(30);
    for (const { from, to } of inside)
      expect(to, from).toMatch(
        /^(console\/|\.\/.*\.css$|preact|marked$|dompurify$|uplot|eventsource-parser|\.\.\/schemas\/openapi\.ts$)/,
      );
    expect(imports.filter(({ from, to }) => to.startsWith("console/") && !from.startsWith("console/"))).toEqual([]);
  });

  it("each external package is imported only by the parts that need it", () => {
    for (const file of importers(/^valibot$/, { types: true }))
      expect(file).toMatch(/^(http|config|sessions\/archive|hosts\/calls)\//);
    // Only a process that opens the HTTP API loads its code and its packages.
    for (const file of importers(/^@?hono\b/, { types: true })) expect(file).toMatch(/^http\//);
    const loadingApi = importers(/^http\//, { types: false, lazy: false }).filter((file) => !file.startsWith("http/"));
    expect(loadingApi).toEqual([]);
    // Commands load the schemas of the calls between hosts only if they need them, so that they start faster on one
    // host.
    expect(importers(/^hosts\/calls\/rpc-table\.ts$/, { types: false, lazy: false })).toEqual([]);
    expect(importers(/^prom-client$/, { types: true })).toEqual(["serve/report/metrics.ts"]);
    for (const file of importers(/^ioredis$/, { types: true })) expect(file).toMatch(/^store\/redis\//);
    expect(importers(/^@photostructure\/sqlite$/, { types: true })).toEqual(["store/sqlite/rows.ts"]);
    expect(importers(/^ioredis$/, { types: false })).toEqual(["store/redis/connection.ts"]);
    for (const file of importers(/^jose$/, { types: true }))
      expect(file).toMatch(/^(identity\/(jwt|claims)\.ts$|providers\/github-app\.ts)/);
    expect(importers(/^jose$/, { types: false, lazy: false })).toEqual([]);
    // A front door loads the code for GitHub tokens and JSON Web Tokens only when a client first presents one.
    expect(importers(/^identity\/github\.ts$/, { types: false, lazy: false })).toEqual([]);
    expect(importers(/^identity\/jwt\.ts$/, { types: false, lazy: false })).toEqual(["fleet/doctor/settings.ts"]);
    for (const file of importers(/^(mustache|yaml)$/, { types: true, lazy: false })) expect(file).toMatch(/^deploy\//);
    // `kubernetes-models` is a development dependency: the tests use its schemas.
    expect(importers(/^kubernetes-models\//, { types: true })).toEqual([]);
    expect(importers(/^jsonc-parser$/, { types: true })).toEqual(["config/load/json.ts"]);
    expect(importers(/^parse-duration$/, { types: true })).toEqual(["base/values/measures.ts"]);
    for (const file of importers(/^execa$/, { types: true }))
      expect(file).toMatch(/^(runtime\/launch\/launch|config\/secret|providers\/detect)\.ts$/);
    for (const file of importers(/^node:child_process$/, { types: true }))
      expect(file).toMatch(/^(runtime\/|sandbox\/(landlock|network\/egress)\.ts$|cli\/commands\/open\.ts$)/);
  });

  it("only base/system/ and a few listed files use /proc or process.platform", () => {
    // These parts may also ask for the platform: the names of packages and of the state folder depend on it, and
    // errors, doctor and version print it. The sandbox mounts a server's own /proc.
    const others =
      /^(base\/(system|errors)\/|sandbox\/(bwrap|mounts)\.ts$|(runtime\/launch\/versions|config\/load\/paths|fleet\/(doctor\/settings|versions))\.ts$)/;
    for (const file of files.filter((name) => !others.test(name))) {
      const source = readFileSync(join(SRC, file), "utf8").replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
      expect(source, file).not.toMatch(/["'`]\/proc\b|process\.platform/);
    }
  });

  it("only the command line ends the process and prints", () => {
    const using = (pattern: RegExp) => files.filter((file) => pattern.test(readFileSync(join(SRC, file), "utf8")));
    for (const file of using(/process\.exit\(/)) expect(file).toMatch(/^(main\.ts$|cli\/)/);
    for (const file of using(/console\.\w+\(|process\.std(out|err)\.write\(/)) {
      expect(file).toMatch(/^(main\.ts$|cli\/|sandbox\/network\/process\.ts$)/);
    }
    for (const file of using(/process\.exitCode\s*=/)) expect(file).toMatch(/^(main\.ts$|cli\/)/);
  });

  it("only one function asks a server whether a session is in a turn", () => {
    const asking = files.filter((file) =>
      readFileSync(join(SRC, file), "utf8").includes('"session.metadata.activity"'),
    );
    expect(asking).toEqual(["runtime/client/raw-connection.ts"]);
  });
});
