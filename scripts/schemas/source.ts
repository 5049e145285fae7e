import { join } from "node:path";
import ts from "typescript";
import { ERRORS } from "../../src/base/errors.js";
import { type JsonSchema, schemaOf } from "./json-schema.js";

const REPORT = "src/cli/report.ts";

export interface Outputs {
  /** The schema of each command's `--json` output, by the command's name. The key `error` has the schema of errors. */
  schemas: Record<string, JsonSchema>;
  /** The exit code of each error code. */
  exitCodes: Record<string, number>;
}

/**
 * Reads the types of the outputs from the source: the return type of each command's `run`, and the type of a reported
 * error.
 *
 * @param commands the names of the commands as a user types them, such as `token list`
 */
export function readOutputs(root: string, commands: readonly string[]): Outputs {
  const program = programOf(root, [REPORT, ...commands.map(fileOf)]);
  const checker = program.getTypeChecker();
  const exportOf = (file: string, name: string): ts.Symbol => {
    const source = program.getSourceFile(join(root, file));
    const module = source && checker.getSymbolAtLocation(source);
    const found = module && checker.getExportsOfModule(module).find((symbol) => symbol.name === name);
    if (found === undefined) throw new Error(`${file} has no export ${name}.`);
    return found;
  };
  const resultOf = (command: string): ts.Type => {
    const instance = checker.getDeclaredTypeOfSymbol(exportOf(fileOf(command), "default"));
    const run = instance.getProperty("run");
    const [signature] = run === undefined ? [] : checker.getTypeOfSymbol(run).getCallSignatures();
    const result = signature && checker.getAwaitedType(signature.getReturnType());
    if (result === undefined) throw new Error(`${fileOf(command)} has no method run.`);
    return result;
  };
  const failure = checker.getDeclaredTypeOfSymbol(exportOf(REPORT, "Failure"));
  const results = commands.map(
    (command) => [command, schemaOf(`copilotfleet ${command} --json`, resultOf(command), checker)] as const,
  );
  return {
    schemas: { ...Object.fromEntries(results), error: schemaOf("A command with --json that fails", failure, checker) },
    exitCodes: Object.fromEntries(Object.entries(ERRORS).map(([code, { exit }]) => [code, exit])),
  };
}

/**
 * Resolves only imports of our own files and of valibot, from which the types of the configuration come. No output
 * contains a type of another package, and reading all packages would take twice as long.
 */
function programOf(root: string, files: readonly string[]): ts.Program {
  const { config } = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile);
  const options = { ...ts.parseJsonConfigFileContent(config, ts.sys, root).options, types: [] };
  const host = ts.createCompilerHost(options);
  host.resolveModuleNameLiterals = (names, from, _, to) =>
    names.map(({ text }) =>
      /^(\.|valibot$)/.test(text) ? ts.resolveModuleName(text, from, to, host) : { resolvedModule: undefined },
    );
  return ts.createProgram(
    files.map((file) => join(root, file)),
    options,
    host,
  );
}

function fileOf(command: string): string {
  return `src/cli/commands/${command.replaceAll(" ", "/")}.ts`;
}
