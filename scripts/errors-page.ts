// Writes docs/errors.md, the page of all error codes on the site, from the table of errors. `npm run docs` starts it.
import { writeFileSync } from "node:fs";
import { type Explanation, errorGroups, explain } from "../src/base/errors/explanation.js";
import { isCommand } from "../src/base/errors.js";

const groups = errorGroups();
const list = (items: readonly string[]) => items.map((item) => `- ${item}`).join("\n");
const section = ({ code, title, exit, httpStatus, retryable, data, causes, fixes }: Explanation) => `## ${code}

${title}

Exit code ${exit}, HTTP status ${httpStatus}.${retryable ? " The same call may succeed in a moment." : ""}

Users' data: ${data}

Possible causes:

${list(causes)}

Next steps:

${list(fixes.map((fix) => (isCommand(fix) ? `\`${fix}\`` : fix)))}
`;

const overview = groups.map(({ exit, title, errors }) => {
  const links = errors.map(({ code }) => `[${code}](#${code.toLowerCase()})`);
  return `${title} (exit code ${exit}): ${links.join(", ")}`;
});
const codes = groups.flatMap(({ errors }) => errors.map(({ code }) => code)).sort();
const page = `# Error codes

Each error has a code that never changes, so scripts can match on it. \`copilotfleet explain CODE\` prints the same text, and
\`copilotfleet explain\` lists all codes. Words in capital letters, such as USER, stand for your own values.

${list(overview)}

${codes
  .flatMap((code) => explain(code) ?? [])
  .map(section)
  .join("\n")}`;
writeFileSync(new URL("../docs/errors.md", import.meta.url), page);
