import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import { faultsOf } from "../fixtures/commands/typed-commands.js";
import { missingLine, PARTS, runbooks } from "../fixtures/monitoring/runbooks.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const PAGE = readFileSync(join(ROOT, "docs/runbooks.md"), "utf8");
const BOOKS = runbooks();
const STEPS = BOOKS.flatMap(({ confirm, mend }) => [...confirm, ...mend]);
const RULES = (
  parse(readFileSync(join(ROOT, "monitoring/alerts.yml"), "utf8")) as {
    groups: { rules: { alert: string; annotations: Record<string, string> }[] }[];
  }
).groups.flatMap(({ rules }) => rules);
/** The programs that a runbook may use, because every host with systemd has them. */
const PROGRAMS = ["copilotfleet", "curl", "df", "grep", "journalctl", "systemctl", "uptime"];

// test/commands/runbooks.test.ts follows the runbooks on a real fleet.
describe("docs/runbooks.md", () => {
  it("the page of runbooks has a section for each alert, in the order of the alerts", () => {
    expect(BOOKS.map(({ alert }) => alert)).toEqual(RULES.map(({ alert }) => alert));
  });

  it.each(BOOKS.map((book) => [book.alert, book] as const))(
    "the runbook of %s has all parts, with commands that confirm the problem and commands that solve it",
    (_, { parts, confirm, mend }) => {
      expect(parts).toEqual(PARTS);
      expect(confirm.length).toBeGreaterThan(0);
      expect(mend.length).toBeGreaterThan(0);
    },
  );

  it("the page of runbooks prints only commands and flags that exist", () => {
    const printed = [...PAGE.matchAll(/^\$ (.*)$/gm), ...PAGE.matchAll(/`([^`\n]*\bcopilotfleet [a-z][^`\n]*)`/g)];
    expect(printed.length).toBeGreaterThan(60);
    for (const [, command = ""] of printed) expect(faultsOf(command), command).toEqual([]);
  });

  it("each command of the runbooks is valid in a shell, and runs only programs that every host has", () => {
    for (const { command } of STEPS) {
      const { status, stderr } = spawnSync("bash", ["-n", "-c", command], { encoding: "utf8" });
      expect({ status, stderr }, command).toEqual({ status: 0, stderr: "" });
      const programs = command.split(/\s\|\s/).map((part) => part.replace(/^sudo /, "").split(" ")[0] ?? "");
      expect(PROGRAMS, command).toEqual(expect.arrayContaining(programs));
    }
  });

  it("the runbooks grep only for metrics that a supervisor exports from its start", async () => {
    const exposition = await (await FleetMetrics.open({ version: "1.2.3" })).text();
    const looks = STEPS.filter(({ command }) => command.includes("/metrics | grep "));
    expect(looks.length).toBeGreaterThan(5);
    for (const { command, output } of looks) {
      const [, , pattern = ""] = / grep (["'])(.*)\1$/.exec(command) ?? [];
      const found = exposition.split("\n").filter((line) => new RegExp(pattern).test(line));
      expect(found, command).not.toEqual([]);
      expect(missingLine(found.join("\n"), output, {}), command).toBeNull();
    }
  });

  it("each alert links to its section of the runbooks in the repository that package.json names", () => {
    const { repository } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
      repository: { url: string };
    };
    const page = `${repository.url.replace(/^git\+|\.git$/g, "")}/blob/main/docs/runbooks.md`;
    for (const { alert, annotations } of RULES) expect(annotations.runbook_url).toBe(`${page}#${alert.toLowerCase()}`);
  });

  it("missingLine returns the first expected line that the output lacks, or has in another order", () => {
    const values = { SERVER: "alice-1" };
    const output = "SERVER   USER\nalice-1   alice   ready\n";
    expect(missingLine(output, ["SERVER …", "SERVER … ready …"], values)).toBeNull();
    expect(missingLine(output, ["SERVER … ready …", "SERVER … USER"], values)).toBe("SERVER … USER");
    expect(missingLine(output, ["…", "SERVER … failed …"], values)).toBe("SERVER … failed …");
  });
});
