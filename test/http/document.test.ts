import { readFileSync } from "node:fs";
import { Ajv2020 } from "ajv/dist/2020.js";
import { expect, it } from "vitest";
import { ROUTES } from "../../src/http/app.js";

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

interface Operation {
  operationId: string;
  responses: Record<string, object>;
}
interface OpenApi {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
}

const document = JSON.parse(read("schemas/openapi.json")) as OpenApi & object;

it("the OpenAPI document describes exactly the routes of the API, with unique operation ids", () => {
  expect(document.openapi).toBe("3.1.0");
  const described = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`),
  );
  expect(described.sort()).toEqual(ROUTES.map(({ name }) => name).sort());
  const ids = Object.values(document.paths).flatMap((item) =>
    Object.values(item).map(({ operationId }) => operationId),
  );
  expect(new Set(ids).size).toBe(ids.length);
});

it("every $ref in the OpenAPI document resolves, and every response schema is valid JSON Schema", () => {
  const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(([, path = ""]) => path);
  expect(references.length).toBeGreaterThan(20);
  for (const path of references) {
    const target = path
      .split("/")
      .reduce<unknown>((at, key) => (at as Record<string, unknown> | undefined)?.[key], document);
    expect(target, path).toBeDefined();
  }
  const ajv = new Ajv2020({ strict: false });
  ajv.addSchema({ $id: "https://api.example/", ...document });
  const schemas = Object.values(document.paths).flatMap((item) =>
    Object.values(item).flatMap(({ responses }) => JSON.parse(JSON.stringify(Object.values(responses))) as object[]),
  );
  for (const response of schemas) {
    const { content } = response as { content?: Record<string, { schema: object }> };
    for (const { schema } of Object.values(content ?? {})) {
      const absolute = JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"https://api.example/#/')) as object;
      expect(() => ajv.compile(absolute)).not.toThrow();
    }
  }
});

it("docs/http.md has a curl command for each route", () => {
  const commands = read("docs/http.md")
    .replaceAll("\\\n", " ")
    .split("\n")
    .filter((line) => line.startsWith("curl "));
  for (const route of ROUTES) {
    const path = new RegExp(`${route.path.replace(/\{\w+\}/g, '[^/ ?"]+')}(\\?[^ ]*)?"? `);
    const isMethod = (line: string) => {
      const given = / -X (\w+) /.exec(line)?.[1] ?? (/ -d '/.test(line) ? "POST" : "GET");
      return given === route.method;
    };
    expect(
      commands.some((line) => path.test(line) && isMethod(line)),
      route.name,
    ).toBe(true);
  }
});
