// Captions, answers and boxes over HTTP, from a model.zip that samples/Pipeline saved: one model for all requests.
//
//   dotnet run --project samples/CaptionService -- [--model model.zip] [--urls http://localhost:5000]
//
//   curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" localhost:5000/caption
//   curl -F image=@photo.jpg -F "question=What is on the table?" localhost:5000/answer
//   curl -F image=@photo.jpg -F "phrase=the sleeping cat" localhost:5000/locate
//   curl -N -F image=@photo.jpg -F "message=What is unusual here?" localhost:5000/chat     (server-sent events)
//   curl localhost:5000/health
//
// It has no authentication and no TLS: it belongs behind a gateway that has.

using MambaVL.Samples;
using MambaVL.Transforms;

var builder = WebApplication.CreateBuilder(args);
builder.Configuration.AddCommandLine(args, new Dictionary<string, string> { ["--model"] = "Service:Model" });
var settings = builder.Configuration.GetSection("Service").Get<ServiceSettings>() ?? new();
builder.WebHost.ConfigureKestrel(server =>
{
    server.Limits.MaxRequestBodySize = settings.MaxUploadBytes;
    server.Limits.MaxConcurrentConnections = settings.MaxConnections;
});
builder.Services.AddSingleton(settings).AddSingleton<Gate>().AddSingleton(_ => CaptionModel.Load(settings.Model));
builder.Services.AddProblemDetails().AddExceptionHandler<Errors>();

var app = builder.Build();
app.UseExceptionHandler();
app.Services.GetRequiredService<CaptionModel>(); // a file that cannot be used ends the program here

// A handler's token is the request's: it is cancelled when the client leaves, and the model then stops within one token.
var model = app.MapGroup("").AddEndpointFilter(app.Services.GetRequiredService<Gate>());
model.MapPost("/caption", (Upload upload, CaptionModel captions, CancellationToken left) => captions.Caption(upload.Image, left));
model.MapPost("/answer", (Upload upload, CaptionModel captions, CancellationToken left) => captions.Answer(upload.Image, upload.Text("question"), left));
model.MapPost("/locate", (Upload upload, CaptionModel captions, CancellationToken left) =>
{
    var found = captions.Locate(upload.Image, upload.Text("phrase"), left);
    var box = found.Box.ToBoundingBox() is { } b ? new { b.X0, b.Y0, b.X1, b.Y1 } : null;
    return new { Box = box, found.Text }; // in pixels of the picture; null where the text holds no box
});
model.MapPost("/chat", (Upload upload, CaptionModel captions, CancellationToken left) => TypedResults.ServerSentEvents(captions.Chat(upload.Image, upload.Text("message"), left)));
app.MapGet("/health", (Gate gate) => new { Status = "ok", gate.Running, gate.Waiting });
app.Run();
