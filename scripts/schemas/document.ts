import { createConfig, lintFromString } from "@redocly/openapi-core";
import openapiTS, { astToString } from "openapi-typescript";

const HEADING = "// Generated from schemas/openapi.json by openapi-typescript. Run: npm run schemas\n\n";

/**
 * Applies all of Redocly's recommended rules.
 *
 * @returns one line for each place that breaks a rule
 */
export async function lint(document: object): Promise<string[]> {
  const config = await createConfig({ extends: ["recommended"] });
  const problems = await lintFromString({ source: JSON.stringify(document), absoluteRef: "openapi.json", config });
  return problems.map(({ ruleId, message, location }) => `${location[0]?.pointer ?? "#/"} ${ruleId}: ${message}`);
}

/** The types of a TypeScript client for `openapi-fetch`. */
export async function clientTypes(document: object): Promise<string> {
  // Pass a copy, because the generator changes the document.
  const copy = JSON.parse(JSON.stringify(document)) as object;
  return `${HEADING}${astToString(await openapiTS(copy as Parameters<typeof openapiTS>[0], { enumValues: true }))}`;
}
