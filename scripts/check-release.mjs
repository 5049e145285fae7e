/**
 * Checks whether the checkout can be released, and lists each reason against it: a placeholder that nobody has filled
 * in, places that name different versions, or a base image without a digest. The release workflow passes the tag, such
 * as v0.2.0.
 *
 * Run: node scripts/check-release.mjs [TAG]
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/** Stands for an account or an address that is still unknown. Two parts, so that this file does not contain it. */
const PLACEHOLDER = ["REPLACE", "ME"].join("-");
/** These files describe the placeholder. */
const ABOUT_PLACEHOLDERS = new Set(["CONTRIBUTING.md", "test/release.test.ts"]);

const read = (path) => readFileSync(path, "utf8");
const { version } = JSON.parse(read("package.json"));
const [tag] = process.argv.slice(2);
const problems = [];

for (const file of execFileSync("git", ["ls-files"], { encoding: "utf8" }).trim().split("\n")) {
  if (ABOUT_PLACEHOLDERS.has(file)) continue;
  read(file)
    .split("\n")
    .forEach((line, index) => {
      if (line.includes(PLACEHOLDER)) problems.push(`${file}:${index + 1} still has the placeholder ${PLACEHOLDER}`);
    });
}

const locked = JSON.parse(read("package-lock.json"));
if (locked.version !== version) problems.push(`package-lock.json is version ${locked.version}, not ${version}`);

const [, newest, note] = /^## (\d\S*)(?: \(([^)]*)\))?$/m.exec(read("CHANGELOG.md")) ?? [];
if (newest !== version) problems.push(`CHANGELOG.md begins with version ${newest}, not ${version}`);
else if (!/^\d{4}-\d\d-\d\d$/.test(note ?? "")) problems.push(`CHANGELOG.md has no date for version ${version}`);

for (const file of ["Dockerfile", "docs/deploy.md"]) {
  for (const [, named] of read(file).matchAll(/copilotfleet:(\d+\.\d+\.\d+)/g)) {
    if (named !== version) problems.push(`${file} names the image copilotfleet:${named}, not ${version}`);
  }
}

const stages = [...read("Dockerfile").matchAll(/^FROM (\S+)(?: AS (\S+))?$/gim)];
for (const [, image] of stages) {
  const isStage = stages.some(([, , stage]) => stage === image);
  if (!isStage && !/@sha256:[0-9a-f]{64}$/.test(image)) problems.push(`Dockerfile does not pin ${image} by its digest`);
}

if (tag !== undefined && tag !== `v${version}`) problems.push(`the tag is ${tag}, not v${version}`);

if (problems.length > 0) {
  process.stderr.write(`Not ready for release:\n${problems.map((problem) => `  ${problem}\n`).join("")}`);
  process.exitCode = 1;
} else process.stdout.write(`Ready to release ${version}.\n`);
